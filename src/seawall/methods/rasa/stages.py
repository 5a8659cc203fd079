"""The stages of RASA (arXiv 2602.04448): profile, select, evaluate, repair; each is published atomically."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from seawall.artifacts.delta import Delta
from seawall.artifacts.evaluation import EvalResult
from seawall.artifacts.expert_set import ExpertSet
from seawall.artifacts.profile import ExpertProfile
from seawall.artifacts.store import require_model
from seawall.config.eval import EvalConfig
from seawall.config.repair import MEMORY_SETTINGS, TRAINED, RepairConfig, memory_settings
from seawall.data.types import Messages
from seawall.evaluation.capability.run import file_hashes
from seawall.evaluation.decision import ValidationScores
from seawall.evaluation.run import evaluate
from seawall.evaluation.suite import build_suite
from seawall.methods.rasa.context import kept_pairs, refusal_targets, repair_inputs, stage_inputs
from seawall.methods.rasa.profiling import profile
from seawall.methods.rasa.repair import RepairResult, repair
from seawall.methods.rasa.repair.drift import expert_usage, routing_drift
from seawall.methods.rasa.selection import select
from seawall.methods.rasa.selection.scores import gate_traffic
from seawall.methods.rasa.selection.sensitivity import refusal_sensitivity
from seawall.models.backoff import memory_remedy
from seawall.models.decoding import Loaded
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.generate import our_loop
from seawall.models.moe.find import find_moe
from seawall.models.moe.trainable_copies import read_slices
from seawall.models.replicas import computed_in_step, copy_weights
from seawall.models.sharding import is_sharded
from seawall.runs.files import read_json, write_json, write_metrics
from seawall.runs.stage import run_stage, stage_hash
from seawall.shell.context import Context
from seawall.shell.model import OpenModel
from seawall.shell.validation import validator
from seawall.train.optimizers import require_optimizer
from seawall.train.trackers import tracking

When = Literal["before", "after"]
_OUTCOME = "outcome.json"
_DRIFT_PROMPTS = 32
"""Number of validation attacks on which the repair's routing drift is measured."""


def profile_stage(context: Context) -> ExpertProfile:
    """Successful jailbreaks of refused requests, and the routing of both sides (sections 3.1 and 3.2)."""
    context.reporter.stage("Profile: which experts do successful jailbreaks use?")
    recipe, opened = context.recipe, context.opened
    context.reporter.say(opened.moe.describe())

    def work(scratch: Path) -> None:
        result = profile(
            opened.moe,
            opened.tokenizer,
            context.prompts.pairs("train"),
            recipe.profile,
            judge=context.judge,
            fingerprint=opened.fingerprint,
            scratch=scratch,
            progress=context.reporter.step,
            decoder=context.decoder,
        )
        result.profile.save(scratch)

    # `profile.tokens` is an input of the selection: the profile holds the counts of both kinds of tokens.
    settings = recipe.profile.model_dump(mode="json", exclude={"tokens"})
    folder = run_stage(
        context.run, "profile", stage_inputs(context, profile=settings), work, skipped=context.reporter.say
    )
    artifact = ExpertProfile.load(folder)
    require_model(artifact.model_fingerprint, expected=opened.fingerprint, artifact="profile")
    context.reporter.say(f"{len(artifact.pairs)} pairs kept, {len(artifact.dropped)} dropped (see profile/pairs.jsonl)")
    return artifact


def select_stage(context: Context, artifact: ExpertProfile) -> ExpertSet:
    """The safety-critical experts (section 3.2)."""
    context.reporter.stage("Select: the safety-critical experts")
    recipe = context.recipe

    def work(scratch: Path) -> None:
        sensitivity_PLE = pair_sensitivity(context) if recipe.select.score == "sensitivity" else None
        select(artifact, recipe.select, tokens=recipe.profile.tokens, sensitivity_PLE=sensitivity_PLE).save(scratch)

    # `control_of` is later than the first run folders, whose key lacks it.
    later = {"control_of"} if recipe.select.control_of is None else set()
    inputs = stage_inputs(
        context,
        select=recipe.select.model_dump(mode="json", exclude=later),
        tokens=recipe.profile.tokens,
        profile=stage_hash(context.run, "profile"),
    )
    selected = ExpertSet.load(run_stage(context.run, "select", inputs, work, skipped=context.reporter.say))
    stable = "" if selected.stability is None else f", bootstrap Jaccard {selected.stability:.2f}"
    shares_LE = gate_traffic(artifact, recipe.profile.tokens)
    share = float(sum(shares_LE[layer, list(experts)].sum() for layer, experts in enumerate(selected.layers)))
    context.reporter.say(
        f"{selected.count} of {selected.total} experts by {selected.method}{stable}; "
        f"{share / len(selected.layers):.1%} of the attacks' gate weight"
    )
    return selected


def pair_sensitivity(context: Context) -> Tensor:
    """The sensitivity of the refusal loss to each expert's gate weights, by pair that the profile kept (P, L, E)."""
    opened, config = context.opened, context.recipe.repair
    context.close_decoders()  # gradients need their memory
    return refusal_sensitivity(
        opened.moe,
        opened.tokenizer,
        refusal_targets(context, kept_pairs(context.run.stage("profile"))),
        batch_size=config.fixed_rows or config.batch_size,
        progress=lambda count, total: context.reporter.step("gradients of the refusal loss", count, total),
    )


def evaluate_stage(context: Context, when: When) -> EvalResult:
    """Rates on test goals. For `after`, `context.opened` must hold the repaired model."""
    context.reporter.stage(f"Evaluate {when} the repair, on goals never trained on")
    recipe, opened = context.recipe, context.opened
    weights = opened.digests.fingerprint()
    suite = build_suite(context.prompts, "test", gold=recipe.eval.gold, wrapping=True)

    def work(scratch: Path) -> None:
        evaluate(
            opened.model,
            opened.tokenizer,
            suite,
            recipe.eval,
            judge=context.judge,
            folder=scratch,
            fingerprint=weights,
            progress=lambda count, total: context.reporter.step("asking", count, total),
            decoder=context.eval_decoder,
        ).save(scratch)

    inputs = stage_inputs(context, **_eval_inputs(recipe.eval), evaluated=weights)
    return EvalResult.load(run_stage(context.run, f"eval-{when}", inputs, work, skipped=context.reporter.say))


def repair_stage(context: Context, selected: ExpertSet) -> Delta:
    """Trains experts and routers (sections 3.3 and 3.4); `context.opened` is repaired afterwards."""
    recipe = context.recipe
    context.reporter.stage(f"Repair: {_steps(recipe.repair)}")
    require_optimizer(recipe.repair.optimizer, context.opened.model.device.type)
    inputs = stage_inputs(
        context,
        repair=_repair_settings(recipe.repair, *MEMORY_SETTINGS),
        eval=recipe.eval.model_dump(mode="json", include={"max_new_tokens", "batch_size"}),
        retain=recipe.data.model_dump(mode="json", include={"retain_examples", "retain_wrapped"}),
        profile=stage_hash(context.run, "profile"),
        select=stage_hash(context.run, "select"),
    )
    formerly = {"repair": _repair_settings(recipe.repair, "gradient_checkpointing")}
    with memory_remedy("the repair", memory_settings(recipe.repair, fsdp=recipe.model.fsdp)):
        folder = run_stage(
            context.run,
            "repair",
            inputs,
            lambda scratch: _repair_work(context, selected, scratch),
            formerly=formerly,
            skipped=context.reporter.say,
        )
    delta = Delta.load(folder / "delta")
    apply_repair(context, delta)
    outcome = read_json(folder / _OUTCOME)
    context.reporter.say(outcome.get("reason") or f"round {outcome['chosen_round']} of {len(outcome['rounds'])} kept")
    return delta


def _steps(config: RepairConfig) -> str:
    """What trains in a round, in its order."""
    routing = "" if config.parameters == "full" else " under fixed routing"
    steps = {f"{TRAINED[config.parameters]}{routing}": config.expert.enabled, "the routers": config.router.enabled}
    return ", then ".join(step for step, enabled in steps.items() if enabled)


def apply_repair(context: Context, delta: Delta) -> None:
    """Turns `context.opened` and its copies into the repaired model, unless it is; sharded weights stay as they are.

    Raises:
        ArtifactError: the repair was made from another model.
    """
    opened = context.opened
    require_model(delta.base_model, expected=opened.fingerprint, artifact="repair")
    if is_sharded(opened.model):
        return  # all processes have written it; and after a repair that was finished before, nothing follows
    if opened.digests.fingerprint() != delta.result_model:
        delta.apply(opened.model.state_dict())
    copy_weights(opened.model, list(delta.slices))


def _repair_settings(config: RepairConfig, *without: str) -> dict[str, Any]:
    """The section as JSON, without what changes no number; nor the optimizer where earlier versions had no other."""
    earlier = ["optimizer"] if config.optimizer == "adamw" else []
    return config.model_dump(mode="json", exclude={"trackers", *without, *earlier})


def _eval_inputs(config: EvalConfig) -> dict[str, Any]:
    """Inputs of an evaluation from its section; without capability the same as before capability existed."""
    if config.capability is None:
        return {"eval": config.model_dump(mode="json", exclude={"capability"})}
    return {"eval": config.model_dump(mode="json"), "capability_files": file_hashes(config.capability)}


def _repair_work(context: Context, selected: ExpertSet, scratch: Path) -> None:
    """Writes delta, metrics and outcome of the repair; the model may be the repaired one afterwards."""
    # The outcome is written last: an attempt that ended after it has only its checkpoints left to remove.
    if not (scratch / _OUTCOME).is_file():
        _write_repair(context, selected, scratch)
    if (scratch / "checkpoints").exists():
        shutil.rmtree(scratch / "checkpoints")


def _write_repair(context: Context, selected: ExpertSet, scratch: Path) -> None:
    opened = context.opened
    prompts = [pair.attack for pair in context.prompts.pairs("validation")][:_DRIFT_PROMPTS]
    rows = context.recipe.eval.forward_rows
    loaded = (opened.model, opened.tokenizer)
    usage_before = computed_in_step(loaded, _usage, prompts, rows)
    result = _repair(context, selected, scratch)
    usage_after = computed_in_step(loaded, _usage, prompts, rows)
    _delta(opened, result).save(scratch / "delta")
    write_metrics(scratch / "metrics.jsonl", result.progress.rows)
    outcome = {
        "chosen_round": result.chosen,
        "reason": result.reason,
        "before": None if result.progress.before is None else result.progress.before.as_row(),
        "rounds": [scores.as_row() for scores in result.progress.scores],
        "routing_drift": routing_drift(usage_before, usage_after).tolist(),
    }
    write_json(scratch / _OUTCOME, outcome)


def _usage(loaded: Loaded, prompts: Sequence[Messages], rows: int) -> Tensor:
    return expert_usage(find_moe(loaded[0]), loaded[1], prompts, batch_size=rows)


def _delta(opened: OpenModel, result: RepairResult) -> Delta:
    """The change of the weights from before the repair to the model as it is."""
    base, loaded = opened.fingerprint, (opened.model, opened.tokenizer)
    if not is_sharded(opened.model):
        after, state = opened.digests.fingerprint(), opened.model.state_dict()
        return Delta.between(result.before, state, result.slices, base_model=base, result_model=after)
    after = computed_in_step(loaded, _fingerprint)
    slices = computed_in_step(loaded, read_slices, result.slices)
    return Delta.between(result.before, slices, result.slices, base_model=base, result_model=after, of_slices=True)


def _fingerprint(loaded: Loaded) -> str:
    return model_fingerprint(loaded[0])


def _repair(context: Context, selected: ExpertSet, scratch: Path) -> RepairResult:
    recipe, opened = context.recipe, context.opened
    inputs = repair_inputs(context, recipe.repair, scratch)
    context.close_decoders()  # the training needs their memory
    # A server per round would start more often than it replies.
    decoder = our_loop if recipe.engine.kind == "vllm" else context.decoder
    with tracking(recipe.repair.trackers, recipe.name, context.run.tracker) as track:
        return repair(
            opened.moe,
            opened.tokenizer,
            inputs,
            selected,
            recipe.repair,
            validate=None if is_sharded(opened.model) else validator(context, decoder),
            scratch=scratch / "checkpoints",
            report=lambda row: _report(context, track, row),
        )


def _report(context: Context, track: Callable[[Mapping[str, Any]], None], row: dict[str, Any]) -> None:
    track(row)
    if row["phase"] == "validation":
        scores = ValidationScores(**{name: row[name] for name in ValidationScores.__dataclass_fields__})
        context.reporter.say(f"round {row['round']} of {context.recipe.repair.rounds}: {scores}")
    else:
        context.reporter.step(f"round {row['round']}, {row['phase']} step", int(row["step"]), int(row["step"]) + 1)

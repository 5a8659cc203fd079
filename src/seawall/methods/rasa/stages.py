"""The stages of the main job, each run once and published whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

from seawall.artifacts.delta import Delta
from seawall.artifacts.evaluation import EvalResult
from seawall.artifacts.expert_set import ExpertSet
from seawall.artifacts.profile import ExpertProfile
from seawall.artifacts.store import require_model
from seawall.config.eval import EvalConfig
from seawall.data.pairs import refusal_for
from seawall.data.types import Exchange, Message, SafetyPair
from seawall.evaluation.capability.run import file_hashes
from seawall.evaluation.run import evaluate
from seawall.evaluation.suite import build_suite
from seawall.methods.rasa.profiling import profile
from seawall.methods.rasa.repair import RepairInputs, RepairResult, repair
from seawall.methods.rasa.repair.drift import expert_usage, routing_drift
from seawall.methods.rasa.retain import retained_exchanges
from seawall.methods.rasa.selection import select
from seawall.models.files.fingerprint import model_fingerprint
from seawall.runs.files import read_json, write_json, write_metrics
from seawall.runs.stage import run_stage, stage_hash
from seawall.shell.context import Context
from seawall.shell.validation import validator

When = Literal["before", "after"]


def _inputs(context: Context, **more: Any) -> dict[str, Any]:
    """What every stage's result depends on."""
    return {**context.basis(), "judge": context.recipe.eval.judge.model_dump(mode="json"), **more}


def profile_stage(context: Context) -> ExpertProfile:
    """Successful jailbreaks, and where their tokens go."""
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
        )
        result.profile.save(scratch)

    # Which tokens decide is the selection's business; the counts hold both kinds.
    settings = recipe.profile.model_dump(mode="json", exclude={"tokens"})
    folder = run_stage(context.run, "profile", _inputs(context, profile=settings), work)
    found = ExpertProfile.load(folder)
    require_model(found.model_fingerprint, expected=opened.fingerprint, artifact="profile")
    kept, dropped = len(found.pairs), len(found.dropped)
    context.reporter.say(f"{kept} pairs kept, {dropped} dropped (see profile/pairs.jsonl)")
    return found


def select_stage(context: Context, found: ExpertProfile) -> ExpertSet:
    """The safety-critical experts."""
    context.reporter.stage("Select: the safety-critical experts")
    recipe = context.recipe

    def work(scratch: Path) -> None:
        select(found, recipe.select, tokens=recipe.profile.tokens).save(scratch)

    settings = recipe.select.model_dump(mode="json")
    inputs = _inputs(context, select=settings, tokens=recipe.profile.tokens, profile=stage_hash(context.run, "profile"))
    chosen = ExpertSet.load(run_stage(context.run, "select", inputs, work))
    stable = "" if chosen.stability is None else f", bootstrap Jaccard {chosen.stability:.2f}"
    context.reporter.say(f"{chosen.count} of {chosen.total} experts by {chosen.method}{stable}")
    return chosen


def evaluate_stage(context: Context, when: When) -> EvalResult:
    """Rates on test goals. `after` needs the repaired model in `context.opened`."""
    context.reporter.stage(f"Evaluate {when} the repair, on goals never trained on")
    recipe, opened = context.recipe, context.opened
    weights = model_fingerprint(opened.model)
    suite = build_suite(context.prompts, "test", gold=recipe.eval.gold)

    def work(scratch: Path) -> None:
        evaluate(
            opened.model,
            opened.tokenizer,
            suite,
            recipe.eval,
            judge=context.judge,
            folder=scratch,
            fingerprint=weights,
            progress=lambda done, total: context.reporter.step("asking", done, total),
        ).save(scratch)

    inputs = _inputs(context, **_evaluated(recipe.eval), evaluated=weights)
    return EvalResult.load(run_stage(context.run, f"eval-{when}", inputs, work))


def _evaluated(config: EvalConfig) -> dict[str, Any]:
    """What an evaluation depends on beside prompts and weights; without capability, what it always did."""
    if config.capability is None:
        return {"eval": config.model_dump(mode="json", exclude={"capability"})}
    return {"eval": config.model_dump(mode="json"), "capability_files": file_hashes(config.capability)}


def repair_stage(context: Context, chosen: ExpertSet) -> Delta:
    """Trains the selected experts and the routers. `context.opened` holds the repaired model afterwards."""
    context.reporter.stage("Repair: the selected experts under fixed routing, then the routers")
    recipe, opened = context.recipe, context.opened

    def work(scratch: Path) -> None:
        drift_prompts = [row.attack for row in context.prompts.pairs("validation")][:32]
        usage = expert_usage(opened.moe, opened.tokenizer, drift_prompts, batch_size=recipe.eval.forward_rows)
        result = _repair(context, chosen, scratch)
        again = expert_usage(opened.moe, opened.tokenizer, drift_prompts, batch_size=recipe.eval.forward_rows)
        fingerprint = model_fingerprint(opened.model)
        state = opened.model.state_dict()
        delta = Delta.between(
            result.before, state, result.slices, base_model=opened.fingerprint, result_model=fingerprint
        )
        delta.save(scratch / "delta")
        write_metrics(scratch / "metrics.jsonl", result.progress.rows)
        outcome = {
            "chosen_round": result.chosen,
            "before": result.progress.before.as_row(),
            "rounds": [scores.as_row() for scores in result.progress.scores],
            "routing_drift": routing_drift(usage, again).tolist(),
        }
        write_json(scratch / "outcome.json", outcome)
        delta.revert(state)
        shutil.rmtree(scratch / "checkpoints")

    data = recipe.data.model_dump(mode="json", include={"retain_examples", "retain_wrapped"})
    inputs = _inputs(
        context,
        repair=recipe.repair.model_dump(mode="json"),
        eval=recipe.eval.model_dump(mode="json", include={"max_new_tokens", "batch_size"}),
        retain=data,
        profile=stage_hash(context.run, "profile"),
        select=stage_hash(context.run, "select"),
    )
    folder = run_stage(context.run, "repair", inputs, work)
    delta = Delta.load(folder / "delta")
    delta.apply(opened.model.state_dict())
    outcome = read_json(folder / "outcome.json")
    context.reporter.say(f"round {outcome['chosen_round']} of {len(outcome['rounds'])} kept")
    return delta


def _repair(context: Context, chosen: ExpertSet, scratch: Path) -> RepairResult:
    recipe, opened = context.recipe, context.opened
    pairs = kept_pairs(context.run.stage("profile"))
    refusals = context.prompts.refusals
    inputs = RepairInputs(
        pairs=pairs,
        refusals=[Exchange(pair.attack, refusal_for(pair.goal, refusals), pair.goal) for pair in pairs],
        retain=retained_exchanges(context, scratch / "retain.jsonl") if recipe.repair.retain.per_batch else [],
    )
    total = recipe.repair.rounds

    def report(row: dict[str, Any]) -> None:
        if row["phase"] == "validation":
            context.reporter.say(
                f"round {row['round']} of {total}: attacks succeed {row['attack_success']:.0%}, plain requests refused "
                f"{row['plain_refusal']:.0%}, over-refusal {row['over_refusal']:.0%}, benign refused "
                f"{row['benign_refusal']:.0%}"
            )
        else:
            context.reporter.step(f"round {row['round']}, {row['phase']} step", int(row["step"]), int(row["step"]) + 1)

    return repair(
        opened.moe,
        opened.tokenizer,
        inputs,
        chosen,
        recipe.repair,
        validate=validator(context),
        scratch=scratch / "checkpoints",
        report=report,
    )


def kept_pairs(profile_folder: Path) -> list[SafetyPair]:
    """The pairs that the profile kept, from its `pairs.jsonl`."""
    found = []
    with (profile_folder / "pairs.jsonl").open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if row["dropped"] is None:
                sides = [tuple(Message(**message) for message in row[side]) for side in ("anchor", "attack")]
                found.append(SafetyPair(row["goal"], sides[0], sides[1], row["attack_name"]))
    return found

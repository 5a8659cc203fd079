"""`seawall run`: find, repair and verify the safety-critical experts of a model (RASA, arXiv 2602.04448)."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seawall.artifacts.delta import Delta
from seawall.artifacts.evaluation import Difference, EvalResult
from seawall.config.model import EMBEDDED
from seawall.config.recipe import Recipe
from seawall.data.sets import Prompts
from seawall.errors import ConfigError, SeawallError
from seawall.evaluation.capability.run import check_capability
from seawall.jobs.export import export_stage, push_stage
from seawall.jobs.plan import plan_recipe
from seawall.jobs.report import copy_samples, model_documents, write_report
from seawall.jobs.summary import paired_changes, summarize
from seawall.methods.rasa.repair.trainables import require_trainable
from seawall.methods.rasa.stages import apply_repair, evaluate_stage, profile_stage, repair_stage, select_stage
from seawall.models.files.inspect import meta_model
from seawall.models.files.load import load_architecture
from seawall.models.files.open import Checkpoint
from seawall.models.moe.find import find_moe
from seawall.models.plan.rates import fixed_seconds
from seawall.models.sharding import sharding_options
from seawall.runs.files import read_json, write_json
from seawall.runs.folder import RunFolder, update_manifest
from seawall.runs.progress import Expecting, Reporter
from seawall.runs.remaining import ExpectedStage
from seawall.runs.sealed import seal_files
from seawall.runs.stage import is_done
from seawall.shell.context import Context
from seawall.shell.engines import require_loadable
from seawall.shell.job import new_run, read_inputs
from seawall.train.optimizers import require_optimizer
from seawall.train.trackers import require_trackers

STAGES = ("profile", "select", "repair", "evaluate", "report")
"""Values of `--until`. `evaluate` evaluates the existing stages; every other value also runs the stages before it."""

STAGE_TITLES = {
    "profile": "Profile",
    "select": "Select",
    "eval-before": "Evaluate before",
    "repair": "Repair",
    "eval-after": "Evaluate after",
    "export": "Export",
}
"""How the titles begin that the planned stages report."""

VERBS_UNTIL: dict[str, tuple[str, ...]] = {
    "profile": ("profile",),
    "select": ("profile", "select"),
    "repair": ("profile", "select", "eval", "repair"),
    "evaluate": ("eval",),
    "report": ("run",),
}
"""The planned verbs whose stages a value of `--until` runs with the model in memory."""

_MEASURING = ("profile", "select", "evaluate")
"""Values of `--until` that change no weight."""


@dataclass(frozen=True)
class Outcome:
    """The run folder, its evaluations, the paired changes between two, and the summary of a finished run."""

    run: RunFolder
    rates: tuple[tuple[str, EvalResult], ...] = ()
    changes: Mapping[str, Difference] = field(default_factory=dict)
    summary: dict[str, Any] | None = None


def run_recipe(recipe: Recipe, folder: Path, *, text: str, reporter: Reporter, until: str = "report") -> Outcome:
    """Runs a recipe, or continues an interrupted run; finished stages are skipped.

    Args:
        recipe: model, prompts and settings.
        folder: the run folder.
        text: the recipe as the user wrote it, saved in the folder.
        reporter: receives progress.
        until: one of `STAGES`.

    Raises:
        SeawallError: an error that the user can correct.
    """
    require_loadable(recipe, "a model behind an endpoint cannot be repaired")
    if recipe.eval.groups is not None:
        raise ConfigError(
            "a repair is measured on every kind of request",
            got=f"eval.groups={list(recipe.eval.groups)}",
            expected="null",
            remedy="leave out eval.groups, or evaluate one model: seawall eval --model",
        )
    if until not in ("profile", "select"):
        check_capability(recipe.eval.capability)
        require_optimizer(recipe.repair.optimizer)
        require_trackers(recipe.repair.trackers)
    if recipe.model.fsdp and until == "repair":
        _require_shardable(recipe, RunFolder(folder))
    prompts = read_inputs(recipe, shards=until == "repair")
    if until not in _MEASURING and recipe.model.id not in EMBEDDED:
        _require_trainable(recipe)
    if isinstance(reporter, Expecting):
        reporter.expect(_expected_stages(recipe, prompts, until))
    context = Context(
        recipe,
        new_run(recipe, folder, text),
        reporter,
        prompts,
        as_stored=until in _MEASURING,
        verbs=VERBS_UNTIL[until],
    )
    with context.working():
        if until == "evaluate":
            return _evaluate(context)
        return _main_job(context, until)


def _require_trainable(recipe: Recipe) -> None:
    """Refuses a model without the parts that the repair trains; no weight is read.

    Raises:
        UnsupportedModelError: it has no shared experts, say.
    """
    if recipe.repair.parameters in ("selected", "full"):
        return  # these are in every model that the profile takes
    checkpoint = Checkpoint(recipe.model)
    model = meta_model(load_architecture(checkpoint.small_files, recipe.model), recipe.model)
    require_trainable(find_moe(model), recipe.repair)


def _require_shardable(recipe: Recipe, run: RunFolder) -> None:
    """Refuses sharded weights where the repair would decode replies with them, or copy them whole.

    Raises:
        ConfigError: it would; or there is no launch.
    """
    sharding_options()
    unfinished = [name for name in ("profile", "select") if not is_done(run, name)]
    if unfinished:
        raise ConfigError(
            "model.fsdp is for the training of a repair, after its profile and selection",
            got=f"no finished {unfinished[0]} in {run.path}",
            expected="both",
            remedy="run `seawall select` in this folder first, without model.fsdp",
        )
    settings = recipe.repair
    if settings.early_stop.enabled:
        raise ConfigError(
            "a repair with model.fsdp measures no round, because sharded weights decode far too slowly",
            got="repair.early_stop.enabled=true",
            expected="false, which keeps the last round",
            remedy="set it, also for `seawall select` and for `seawall run` afterwards, which evaluates the repair",
        )
    if recipe.engine.kind != "vllm" and (settings.retain.per_batch or settings.retain.twins):
        raise ConfigError(
            "with model.fsdp vLLM writes the retained answers, because sharded weights decode far too slowly",
            got=f"engine.kind={recipe.engine.kind}",
            expected="engine.kind=vllm, or repair.retain.per_batch=0 and repair.retain.twins=0",
            remedy="set it, also for `seawall select`",
        )
    if settings.parameters == "full":
        raise ConfigError(
            "model.fsdp shards frozen weights, and each process has a copy of those that train",
            got="repair.parameters=full",
            expected="selected, all_experts or shared",
        )


def _expected_stages(recipe: Recipe, prompts: Prompts, until: str) -> list[ExpectedStage]:
    """The stages up to `until` with their planned operations as cost; none where the plan cannot be made."""
    if until == "evaluate":
        return []  # one stage or two, each with a bar of its own
    try:
        plan = plan_recipe(recipe, verb="run" if until == "report" else until, tflops=1.0, prompts=prompts).plan
    except SeawallError:
        return []
    fixed = {stage.name: fixed_seconds(stage.work) for stage in plan.stages}
    costs = {stage.name: (plan.stage_seconds(stage) or 0.0) - fixed[stage.name] for stage in plan.stages}
    return [ExpectedStage(title, costs[name], fixed[name]) for name, title in STAGE_TITLES.items() if name in costs]


def _main_job(context: Context, until: str) -> Outcome:
    """RASA: profile, select, repair; with an evaluation before and after, export and report."""
    begun = time.monotonic()
    # Pairs of a refused plain request and a successful jailbreak, and their routing (sections 3.1 and 3.2).
    profile = profile_stage(context)
    if until == "profile":
        return Outcome(context.run)
    # The experts that jailbreaks use more than refusals do (section 3.2).
    selected = select_stage(context, profile)
    if until == "select":
        return Outcome(context.run)
    if context.recipe.model.fsdp:  # replies are for whole weights; `seawall run` evaluates before and after
        repair_stage(context, selected)
        return Outcome(context.run)
    before = evaluate_stage(context, "before")
    # Rounds of an expert step and a router step (sections 3.3 and 3.4).
    delta = repair_stage(context, selected)
    if until == "repair":
        return Outcome(context.run, (("before", before),))
    after = evaluate_stage(context, "after")
    changes = paired_changes(context, before, after)
    summary = summarize(context, selected, before, after, changes=changes)
    parity = export_stage(context, delta, model_documents(context.run, summary))
    summary = _finish(context, {**summary, "parity": parity}, time.monotonic() - begun)
    push_stage(context, after.model_fingerprint)
    return Outcome(context.run, (("before", before), ("after", after)), changes, summary)


def _evaluate(context: Context) -> Outcome:
    before = evaluate_stage(context, "before")
    if not is_done(context.run, "repair"):
        return Outcome(context.run, (("before", before),))
    apply_repair(context, Delta.load(context.run.stage("repair") / "delta"))
    after = evaluate_stage(context, "after")
    return Outcome(context.run, (("before", before), ("after", after)), paired_changes(context, before, after))


def _finish(context: Context, summary: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Writes summary, samples and report; a continued run adds its time to that of earlier attempts."""
    context.reporter.stage("Report")
    run = context.run
    earlier = read_json(run.manifest).get("seconds", 0.0) if run.manifest.is_file() else 0.0
    previous = read_json(run.summary) if run.summary.is_file() else {}
    peak = previous.get("peak_memory_bytes", peak_memory())
    summary |= {"seconds": previous.get("seconds", round(earlier + seconds, 1)), "peak_memory_bytes": peak}
    update_manifest(run, {"seconds": summary["seconds"]})
    write_json(run.summary, summary)
    seal_files(run)
    copy_samples(run)
    write_report(run, summary)
    return summary


def peak_memory() -> int:
    """Peak memory of this process, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

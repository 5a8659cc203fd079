"""`seawall tune`: fine-tune on a task by several methods, and see what each leaves of the model's refusals."""

from __future__ import annotations

from pathlib import Path

from seawall.artifacts.anchor import Anchor
from seawall.artifacts.tuning import NAME, TuningResult, TuningRow
from seawall.config.recipe import Recipe
from seawall.config.tune import TuneMethod
from seawall.distributed.process import launched
from seawall.jobs.report import write_tuning_page
from seawall.methods.tune.context import TuneContext, check
from seawall.methods.tune.methods import follow
from seawall.methods.tune.rows import read_data, rows_hash
from seawall.methods.tune.sft import require_extra
from seawall.methods.tune.stages import (
    anchor_stage,
    evaluated_row,
    measure_before,
    require_kept,
    trained_stage,
    without_contaminated,
)
from seawall.methods.tune.view import claim
from seawall.runs.files import read_json
from seawall.runs.folder import RunFolder
from seawall.runs.progress import Quiet, Reporter
from seawall.shell.job import check_inputs, new_run

TUNE = "tune"


def tune_recipe(recipe: Recipe, folder: Path, *, text: str, reporter: Reporter) -> TuningResult | None:
    """Fine-tunes a recipe's model in its run folder, or goes on with that.

    Every method and seed is a stage of its own: what is finished is skipped, what was interrupted goes on from its
    last checkpoint, and more methods or seeds can be added to a run.

    Args:
        recipe: model, prompts and settings.
        folder: the run folder.
        text: the recipe as the user wrote it.
        reporter: told what happens.

    Returns:
        what was found; None in every process but the first, which train with it and write nothing.

    Raises:
        SeawallError: something is wrong that the user can put right.
    """
    check(recipe)
    check_inputs(recipe)
    require_extra()
    data = read_data(recipe)
    processes = launched(device=recipe.model.device)
    if not processes.first:
        follow(TuneContext(recipe, RunFolder(folder), Quiet(), data.prompts, data, processes))
        return None
    run = new_run(recipe, folder, text)
    context = TuneContext(recipe, run, reporter, data.prompts, data, processes)
    with context.working("tune_prompts"):
        found = _tune(context)
        processes.order(None)
        found.save(run.stage(TUNE))
        reporter.say(found.claim)
        if any(row.contaminated and row.adapter for row in found.rows):
            reporter.say("Adapters that were trained on harmful rows are for measuring only: do not ship them.")
        write_tuning_page(run, recipe, found)
    return found


def document(run: Path) -> dict[str, object]:
    """For machines: where it lies, and all that was found."""
    return {"run": str(run), TUNE: read_json(RunFolder(run).stage(TUNE) / NAME)}


def _tune(context: TuneContext) -> TuningResult:
    config = context.config
    data = context.data
    anchor = anchor_stage(context)
    require_kept(context)
    context.note({"data": {"task": rows_hash((*data.task.train, *data.task.test))}})
    before = measure_before(context)
    rows = [_row(context, method, seed, anchor) for method in _ordered(config.methods) for seed in config.seeds]
    found = TuningResult(
        model_fingerprint=context.fingerprint,
        base_fingerprint=None if anchor is None else anchor.base,
        task=data.task.name,
        contamination=config.contamination,
        weight=config.weight,
        before=before,
        rows=tuple(without_contaminated(context, row) for row in rows),
    )
    return claim(found)


def _ordered(methods: tuple[TuneMethod, ...]) -> list[TuneMethod]:
    """In the recipe's order; but what is projected afterwards comes after what it is made from."""
    return sorted(methods, key=lambda method: method == "safelora")


def _row(context: TuneContext, method: TuneMethod, seed: int, anchor: Anchor | None) -> TuningRow:
    row, adapter = trained_stage(context, method, seed, anchor)
    return evaluated_row(context, row, adapter)

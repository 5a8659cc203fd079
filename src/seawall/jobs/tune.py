"""`seawall tune`: fine-tune on a task by several methods, and measure the refusals that each one preserves."""

from __future__ import annotations

from pathlib import Path

from seawall.artifacts.tuning import NAME, TuningResult
from seawall.config.recipe import Recipe
from seawall.distributed.process import launch_is_current, launched
from seawall.jobs.report import write_tuning_page
from seawall.methods.tune.context import TuneContext, check_recipe
from seawall.methods.tune.data import read_data
from seawall.methods.tune.methods import train_as_worker
from seawall.methods.tune.sft import require_extra
from seawall.methods.tune.stages import tune
from seawall.runs.files import read_json
from seawall.runs.folder import RunFolder
from seawall.runs.progress import Quiet, Reporter
from seawall.shell.job import check_inputs, new_run

TUNE = "tune"


def tune_recipe(recipe: Recipe, folder: Path, *, text: str, reporter: Reporter) -> TuningResult | None:
    """Fine-tunes a recipe's model in its run folder; continues an interrupted run.

    Each method and seed is a stage: finished stages are skipped, an interrupted training resumes from its last
    checkpoint, and methods or seeds can be added to a run.

    Args:
        recipe: model, prompts, task and settings.
        folder: the run folder.
        text: the recipe as the user wrote it.
        reporter: receives progress and the claim.

    Returns:
        the result; None in every process but the first: these take part in training and write nothing.

    Raises:
        SeawallError: an error that the user can correct.
    """
    check_recipe(recipe)
    check_inputs(recipe)
    require_extra()
    data = read_data(recipe)
    processes = launched(device=recipe.model.device)
    if not processes.first:
        train_as_worker(TuneContext(recipe, RunFolder(folder), Quiet(), data.prompts, data, processes, verbs=(TUNE,)))
        return None
    with launch_is_current(processes):
        run = new_run(recipe, folder, text)
    context = TuneContext(recipe, run, reporter, data.prompts, data, processes, verbs=(TUNE,))
    with context.working("tune_prompts"):
        result = tune(context)
        processes.order(None)
        result.save(run.stage(TUNE))
        reporter.say(result.claim)
        if any(row.contaminated and row.adapter for row in result.rows):
            reporter.say("Adapters that were trained on harmful rows are for measuring only: do not ship them.")
        write_tuning_page(run, recipe, result)
    return result


def document(run: Path) -> dict[str, object]:
    """The JSON document: the run folder and the result."""
    return {"run": str(run), TUNE: read_json(RunFolder(run).stage(TUNE) / NAME)}

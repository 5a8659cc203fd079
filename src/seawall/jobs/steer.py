"""`seawall steer`: how far refusal can be moved at inference, and by what. No weight is changed, none is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seawall.artifacts.steering import STEER, SteeringResult
from seawall.config.recipe import Recipe
from seawall.data.sets import Prompts
from seawall.jobs.report import write_report, write_steering_page
from seawall.methods.steer.context import SteerContext, steer_data
from seawall.methods.steer.study import study
from seawall.runs.files import read_json
from seawall.runs.folder import RunFolder
from seawall.runs.progress import Reporter
from seawall.runs.stage import is_done, stage_hash
from seawall.shell.job import claiming_stage, new_run, read_inputs, recipe_of_run
from seawall.shell.model import require_loadable


def steer_recipe(recipe: Recipe, folder: Path, *, text: str, reporter: Reporter) -> SteeringResult:
    """Steers a recipe's model in its run folder, or goes on with that; a repair need not be there.

    Args:
        recipe: model, prompts and settings.
        folder: the run folder.
        text: the recipe as the user wrote it.
        reporter: told what happens.

    Raises:
        SeawallError: something is wrong that the user can put right.
    """
    prompts = _read(recipe)
    return _steer(SteerContext(recipe, new_run(recipe, folder, text), reporter, prompts))


def steer_run(path: Path, changes: Sequence[str], *, reporter: Reporter) -> SteeringResult:
    """Steers the original model of a run, finished or not; its report is written again.

    Args:
        path: the run folder.
        changes: `steer.a=b` each.
        reporter: told what happens.

    Raises:
        SeawallError: no run, a wrong setting.
    """
    recipe, run = recipe_of_run(path, changes, section=STEER)
    return _steer(SteerContext(recipe, run, reporter, _read(recipe)))


def document(run: Path) -> dict[str, object]:
    """For machines: where it lies, and all that was found."""
    return {"run": str(run), STEER: read_json(RunFolder(run).stage(STEER) / "steering.json")}


def _read(recipe: Recipe) -> Prompts:
    require_loadable(recipe.eval.engine, "a model behind an endpoint cannot be steered")
    return read_inputs(recipe, steer_data(recipe))


def _steer(context: SteerContext) -> SteeringResult:
    recipe, run = context.recipe, context.run
    with context.working("steer_prompts"):
        moe = context.opened.moe_if_any
        context.reporter.say("a dense model" if moe is None else moe.describe())
        found = claiming_stage(context, STEER, _inputs(context), work=study, load=SteeringResult.load)
        context.reporter.stage("Report")
        summary = read_json(run.summary) if run.summary.is_file() else {}
        if "attacks" in summary and is_done(run, "eval-after"):
            write_report(run, summary)
        else:
            write_steering_page(run, recipe)
    return found


def _inputs(context: SteerContext) -> dict[str, Any]:
    """What the result depends on."""
    recipe, run = context.recipe, context.run
    inputs = {
        **context.basis(),
        "steer": recipe.steer.model_dump(mode="json"),
        "eval": recipe.eval.model_dump(mode="json", exclude={"gold", "capability"}),
    }
    if recipe.steer.mode == "induce" and is_done(run, "repair"):
        inputs["repair"] = stage_hash(run, "repair")
    return inputs

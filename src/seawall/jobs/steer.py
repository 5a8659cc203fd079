"""`seawall steer`: how far directions of layers and experts move refusal at inference. Writes no weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seawall.artifacts.steering import STEER, SteeringResult
from seawall.config.recipe import Recipe
from seawall.data.sets import Prompts
from seawall.distributed.process import require_joined
from seawall.jobs.report import write_report, write_steering_page
from seawall.methods.steer.context import SteerContext, steer_data
from seawall.methods.steer.stages import steer
from seawall.runs.files import read_json
from seawall.runs.folder import RunFolder
from seawall.runs.progress import Reporter
from seawall.runs.stage import is_done, stage_hash
from seawall.shell.engines import require_loadable
from seawall.shell.job import claiming_stage, new_run, read_inputs, recipe_of_run


def steer_recipe(recipe: Recipe, folder: Path, *, text: str, reporter: Reporter) -> SteeringResult:
    """Steers a recipe's model in its run folder; continues an interrupted study, needs no repair.

    Args:
        recipe: model, prompts and settings.
        folder: the run folder.
        text: the recipe as the user wrote it.
        reporter: receives progress and the claim.

    Raises:
        SeawallError: an error that the user can correct.
    """
    prompts = _read(recipe)
    return _steer(
        SteerContext(recipe, new_run(recipe, folder, text), reporter, prompts, as_stored=True, verbs=(STEER,))
    )


def steer_run(path: Path, changes: Sequence[str], *, reporter: Reporter) -> SteeringResult:
    """Steers the original model of a run, which may be unfinished, and writes its report again.

    Args:
        path: the run folder.
        changes: settings as `steer.KEY=VALUE`.
        reporter: receives progress and the claim.

    Raises:
        SeawallError: no run, or an invalid setting.
    """
    require_joined()
    recipe, run = recipe_of_run(path, changes, section=STEER)
    return _steer(SteerContext(recipe, run, reporter, _read(recipe), as_stored=True, verbs=(STEER,)))


def document(run: Path) -> dict[str, object]:
    """The JSON document: the run folder and the result."""
    return {"run": str(run), STEER: read_json(RunFolder(run).stage(STEER) / "steering.json")}


def _read(recipe: Recipe) -> Prompts:
    require_loadable(recipe, "a model behind an endpoint cannot be steered")
    return read_inputs(recipe, steer_data(recipe))


def _steer(context: SteerContext) -> SteeringResult:
    recipe, run = context.recipe, context.run
    with context.working("steer_prompts"):
        moe = context.opened.moe_if_any
        context.reporter.say("a dense model" if moe is None else moe.describe())
        result = claiming_stage(context, STEER, _inputs(context), work=steer, load=SteeringResult.load)
        context.reporter.stage("Report")
        summary = read_json(run.summary) if run.summary.is_file() else {}
        if "attacks" in summary and is_done(run, "eval-after"):
            write_report(run, summary)
        else:
            write_steering_page(run, recipe)
    return result


def _inputs(context: SteerContext) -> dict[str, Any]:
    """The stage's inputs."""
    recipe, run = context.recipe, context.run
    inputs = {
        **context.basis(),
        "steer": recipe.steer.model_dump(mode="json"),
        "eval": recipe.eval.model_dump(mode="json", exclude={"gold", "capability"}),
    }
    if recipe.steer.mode == "induce" and is_done(run, "repair"):
        inputs["repair"] = stage_hash(run, "repair")
    return inputs

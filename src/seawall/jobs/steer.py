"""`seawall steer`: how far refusal can be moved at inference, and by what. No weight is changed, none is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seawall.artifacts.steering import STEER, SteeringResult
from seawall.config.load import change_recipe
from seawall.config.recipe import Recipe
from seawall.jobs.report import write_report, write_steering_page
from seawall.methods.steer.context import SteerContext
from seawall.methods.steer.study import _work
from seawall.models.files.fingerprint import tokenizer_fingerprint
from seawall.runs.files import read_json, storage_errors
from seawall.runs.folder import RunFolder, locked
from seawall.runs.progress import Reporter
from seawall.runs.stage import is_done, run_stage, stage_hash
from seawall.shell.model import require_loadable
from seawall.version import __version__


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
    _check(recipe)
    run = RunFolder.open(folder, resolved=recipe.model_dump(mode="json"), text=text)
    return _steer(recipe, run, reporter)


def steer_run(path: Path, changes: Sequence[str], *, reporter: Reporter) -> SteeringResult:
    """Steers the original model of a run, finished or not; its report is written again.

    Args:
        path: the run folder.
        changes: `steer.a=b` each.
        reporter: told what happens.

    Raises:
        SeawallError: no run, a wrong setting.
    """
    run = RunFolder.existing(path)
    recipe = change_recipe(read_json(run.resolved), changes, where=str(run.resolved), section=STEER)
    _check(recipe)
    return _steer(recipe, run, reporter)


def document(run: Path) -> dict[str, object]:
    """For machines: where it lies, and all that was found."""
    return {"run": str(run), STEER: read_json(RunFolder(run).stage(STEER) / "steering.json")}


def _check(recipe: Recipe) -> None:
    require_loadable(recipe.eval.engine, "a model behind an endpoint cannot be steered")


def _steer(recipe: Recipe, run: RunFolder, reporter: Reporter) -> SteeringResult:
    with storage_errors(run.path), locked(run.path):
        context = SteerContext(recipe, run, reporter)
        folder = run_stage(run, STEER, _inputs(context), lambda scratch: _work(context, scratch))
        found = SteeringResult.load(folder)
        reporter.say(found.claim)
        reporter.stage("Report")
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
        "seawall": __version__,
        "weights": context.opened.fingerprint,
        "tokenizer": tokenizer_fingerprint(context.opened.tokenizer),
        "prompts": context.prompts.fingerprint(),
        "steer": recipe.steer.model_dump(mode="json"),
        "eval": recipe.eval.model_dump(mode="json", exclude={"gold", "capability"}),
    }
    if recipe.steer.mode == "induce" and is_done(run, "repair"):
        inputs["repair"] = stage_hash(run, "repair")
    return inputs

"""`seawall landscape`: the harmful rate of a model while its weights move. Writes no weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seawall.artifacts.landscape import NAME, LandscapeResult
from seawall.config.recipe import Recipe
from seawall.data.sets import Prompts
from seawall.distributed.process import require_joined
from seawall.methods.landscape.context import LandscapeContext, check_landscape, landscape_data
from seawall.methods.landscape.stages import measure_landscape
from seawall.methods.landscape.view import landscape_view
from seawall.report import render_landscape
from seawall.runs.files import read_json, write_text
from seawall.runs.folder import RunFolder
from seawall.runs.progress import Reporter
from seawall.shell.job import claiming_stage, new_run, read_inputs, recipe_of_run

STAGE = "landscape"


def landscape_recipe(recipe: Recipe, folder: Path, *, text: str, reporter: Reporter) -> LandscapeResult:
    """Measures the landscape of a recipe's model into its run folder; continues an interrupted one, needs no repair.

    Args:
        recipe: model, prompts and settings.
        folder: the run folder.
        text: the recipe as the user wrote it.
        reporter: receives progress and the claim.

    Raises:
        SeawallError: an error that the user can correct.
    """
    prompts = _read(recipe)
    return _landscape(LandscapeContext(recipe, new_run(recipe, folder, text), reporter, prompts, verbs=(STAGE,)))


def landscape_run(path: Path, changes: Sequence[str], *, reporter: Reporter) -> LandscapeResult:
    """Measures the landscape of a run's original model; the run may be unfinished.

    Args:
        path: the run folder.
        changes: settings as `landscape.KEY=VALUE`.
        reporter: receives progress and the claim.

    Raises:
        SeawallError: no run, or an invalid setting.
    """
    require_joined()
    recipe, run = recipe_of_run(path, changes, section=STAGE)
    return _landscape(LandscapeContext(recipe, run, reporter, _read(recipe), verbs=(STAGE,)))


def document(run: Path) -> dict[str, object]:
    """The JSON document: the run folder and the result."""
    return {"run": str(run), STAGE: read_json(RunFolder(run).stage(STAGE) / NAME)}


def _read(recipe: Recipe) -> Prompts:
    check_landscape(recipe)
    return read_inputs(recipe, landscape_data(recipe))


def _landscape(context: LandscapeContext) -> LandscapeResult:
    recipe, run = context.recipe, context.run
    with context.working("landscape_prompts"):
        result = claiming_stage(context, STAGE, _inputs(context), work=measure_landscape, load=LandscapeResult.load)
        context.reporter.stage("Report")
        page = render_landscape(
            landscape_view(result),
            model=recipe.model.id,
            recipe=recipe.model_dump(mode="json"),
            manifest=read_json(run.manifest),
        )
        write_text(run.landscape_report, page)
    return result


def _inputs(context: LandscapeContext) -> dict[str, Any]:
    """The stage's inputs; models enter by their weights, not by their paths."""
    recipe = context.recipe
    assert context.held_out
    return {
        "directions": {direction.name: direction.source for direction in context.directions},
        **context.basis(),
        "landscape": recipe.landscape.model_dump(mode="json", exclude={"base", "tuned", "adapter"}),
        "eval": recipe.eval.model_dump(mode="json", exclude={"gold", "capability"}),
    }

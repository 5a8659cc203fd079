"""`seawall landscape`: what a model does to harmful requests while its weights move. No weight is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from seawall.artifacts.landscape import NAME, LandscapeDirection, LandscapeResult
from seawall.config.recipe import Recipe
from seawall.data.sets import Prompts
from seawall.methods.landscape.claim import claim
from seawall.methods.landscape.context import LandscapeContext, check_landscape, landscape_data
from seawall.methods.landscape.stages import basins, measure, plane_of, settings
from seawall.methods.landscape.view import landscape_view
from seawall.report import render_landscape
from seawall.runs.files import read_json, write_text
from seawall.runs.folder import RunFolder
from seawall.runs.progress import Reporter
from seawall.shell.job import claiming_stage, new_run, read_inputs, recipe_of_run

STAGE = "landscape"


def landscape_recipe(recipe: Recipe, folder: Path, *, text: str, reporter: Reporter) -> LandscapeResult:
    """The landscape of a recipe's model in its run folder, or goes on with that; a repair need not be there.

    Args:
        recipe: model, prompts and settings.
        folder: the run folder.
        text: the recipe as the user wrote it.
        reporter: told what happens.

    Raises:
        SeawallError: something is wrong that the user can put right.
    """
    prompts = _read(recipe)
    return _landscape(LandscapeContext(recipe, new_run(recipe, folder, text), reporter, prompts))


def landscape_run(path: Path, changes: Sequence[str], *, reporter: Reporter) -> LandscapeResult:
    """The landscape of a run's original model, finished or not.

    Args:
        path: the run folder.
        changes: `landscape.a=b` each.
        reporter: told what happens.

    Raises:
        SeawallError: no run, a wrong setting.
    """
    recipe, run = recipe_of_run(path, changes, section=STAGE)
    return _landscape(LandscapeContext(recipe, run, reporter, _read(recipe)))


def document(run: Path) -> dict[str, object]:
    """For machines: where it lies, and all that was found."""
    return {"run": str(run), STAGE: read_json(RunFolder(run).stage(STAGE) / NAME)}


def _read(recipe: Recipe) -> Prompts:
    check_landscape(recipe)
    return read_inputs(recipe, landscape_data(recipe))


def _landscape(context: LandscapeContext) -> LandscapeResult:
    recipe, run = context.recipe, context.run
    with context.working("landscape_prompts"):
        found = claiming_stage(context, STAGE, _inputs(context), work=_work, load=LandscapeResult.load)
        context.reporter.stage("Report")
        page = render_landscape(
            landscape_view(found),
            model=recipe.model.id,
            recipe=recipe.model_dump(mode="json"),
            manifest=read_json(run.manifest),
        )
        write_text(run.landscape_report, page)
    return found


def _inputs(context: LandscapeContext) -> dict[str, Any]:
    """What the result depends on: of the models, the weights and not where they lie."""
    recipe = context.recipe
    assert context.asked
    return {
        "directions": {one.name: one.source for one in context.directions},
        **context.basis(),
        "landscape": recipe.landscape.model_dump(mode="json", exclude={"base", "tuned", "adapter"}),
        "eval": recipe.eval.model_dump(mode="json", exclude={"gold", "capability"}),
    }


def _work(context: LandscapeContext, scratch: Path) -> None:
    config, directions = context.config, context.directions
    plane = plane_of(config, [(one.name, one.kind) for one in directions])
    chosen = settings(config, [one.name for one in directions], plane)
    context.reporter.stage(f"{len(chosen)} points, {len(context.asked)} held-out prompts at each")
    found = LandscapeResult(
        model_fingerprint=context.opened.fingerprint,
        directions=tuple(
            LandscapeDirection(one.name, one.kind, one.source, one.norm, one.tensors) for one in directions
        ),
        points=tuple(measure(context, chosen, scratch)),
        plane=plane,
        threshold=config.threshold,
        most_unscored=config.most_unscored,
    )
    found = replace(found, basins=tuple(basins(found)))
    replace(found, claim=claim(found)).save(scratch)

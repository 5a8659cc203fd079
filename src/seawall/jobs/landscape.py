"""`seawall landscape`: what a model does to harmful requests while its weights move. No weight is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from seawall.artifacts.landscape import NAME, LandscapeDirection, LandscapeResult
from seawall.config.load import change_recipe
from seawall.config.recipe import Recipe
from seawall.methods.landscape.claim import claim
from seawall.methods.landscape.context import LandscapeContext, check_landscape
from seawall.methods.landscape.stages import basins, measure, plane_of, settings
from seawall.methods.landscape.view import landscape_view
from seawall.models.files.fingerprint import tokenizer_fingerprint
from seawall.report import render_landscape
from seawall.runs.files import read_json, storage_errors, write_text
from seawall.runs.folder import RunFolder, locked
from seawall.runs.progress import Reporter
from seawall.runs.stage import run_stage
from seawall.version import __version__

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
    check_landscape(recipe)
    run = RunFolder.open(folder, resolved=recipe.model_dump(mode="json"), text=text)
    return _landscape(recipe, run, reporter)


def landscape_run(path: Path, changes: Sequence[str], *, reporter: Reporter) -> LandscapeResult:
    """The landscape of a run's original model, finished or not.

    Args:
        path: the run folder.
        changes: `landscape.a=b` each.
        reporter: told what happens.

    Raises:
        SeawallError: no run, a wrong setting.
    """
    run = RunFolder.existing(path)
    recipe = change_recipe(read_json(run.resolved), changes, where=str(run.resolved), section=STAGE)
    check_landscape(recipe)
    return _landscape(recipe, run, reporter)


def document(run: Path) -> dict[str, object]:
    """For machines: where it lies, and all that was found."""
    return {"run": str(run), STAGE: read_json(RunFolder(run).stage(STAGE) / NAME)}


def _landscape(recipe: Recipe, run: RunFolder, reporter: Reporter) -> LandscapeResult:
    with storage_errors(run.path), locked(run.path):
        context = LandscapeContext(recipe, run, reporter)
        folder = run_stage(run, STAGE, _inputs(context), lambda scratch: _work(context, scratch))
        found = LandscapeResult.load(folder)
        reporter.say(found.claim)
        reporter.stage("Report")
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
        "seawall": __version__,
        "directions": {one.name: one.source for one in context.directions},
        "weights": context.opened.fingerprint,
        "tokenizer": tokenizer_fingerprint(context.opened.tokenizer),
        "prompts": context.prompts.fingerprint(),
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

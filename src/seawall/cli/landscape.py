"""`seawall landscape [RECIPE|RUN]`: how far can the weights move before the model answers harmful requests?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from seawall.cli.common import (
    LOG_WIDTH,
    JsonOption,
    OutputOption,
    SetOption,
    print_json,
    quiet_libraries,
    read_recipe,
    run_folder,
)

if TYPE_CHECKING:
    from seawall.artifacts.landscape import LandscapeResult
    from seawall.config.recipe import Recipe
    from seawall.pipeline.progress import Reporter

_Path = Optional[Path]  # noqa: UP045 - typer reads these annotations


def landscape(
    target: Annotated[
        _Path,
        typer.Argument(
            metavar="[RECIPE.yaml|RUN]",
            help="Recipe file, or a run's folder; none takes the embedded model's recipe.",
            show_default=False,
        ),
    ] = None,
    *,
    sets: SetOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the harmful rate while the weights move: along alignment, along a fine-tuning, and at random.

    landscape.base names the model that it was aligned from; landscape.tuned or landscape.adapter a fine-tuned one. A
    run need not be finished. No weight is written; an interrupted landscape goes on.
    """
    is_run = target is not None and target.is_dir()
    read = None if is_run else read_recipe(target, sets)
    folder = _folder(target if is_run else None, output, read)
    quiet_libraries()
    from seawall.pipeline.landscape import document
    from seawall.pipeline.progress import Quiet, TerminalReporter

    def work(reporter: Reporter) -> LandscapeResult:
        from seawall.pipeline.landscape import landscape_recipe, landscape_run

        if read is None:
            return landscape_run(folder, sets or (), reporter=reporter)
        return landscape_recipe(read[0], folder, text=read[1], reporter=reporter)

    if as_json:
        work(Quiet())
        print_json(document(folder))
        return
    with TerminalReporter() as reporter:
        found = work(reporter)
    _show(found, folder)


def _folder(run: Path | None, output: Path | None, read: tuple[Recipe, str] | None) -> Path:
    from seawall.errors import ConfigError

    if run is None:
        assert read is not None
        return run_folder(read[0], output)
    if output is not None:
        raise ConfigError(f"{run} is a run", got="--output", remedy="leave it out: a run has its own folder")
    return run


def _show(found: LandscapeResult, folder: Path) -> None:
    from rich.console import Console

    from seawall.pipeline.landscape_views import landscape_table
    from seawall.runs.folder import RunFolder

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    console.print(landscape_table(found))
    console.print(found.claim, markup=False)
    console.print(str(RunFolder(folder).landscape_report), soft_wrap=True, markup=False)

"""`seawall steer [RECIPE|RUN]`: how far can refusal be moved at inference, and by what?"""

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
    from seawall.artifacts.steering import SteeringResult
    from seawall.config.recipe import Recipe
    from seawall.pipeline.progress import Reporter

_Path = Optional[Path]  # noqa: UP045 - typer reads these annotations


def steer(
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
    """Measure how far one direction, one expert or attention can move refusal (steer.mode: suppress or induce).

    A run need not be finished. No model is written; `steer.mode=induce` leaves steer/hardening for `seawall.load`.
    """
    is_run = target is not None and target.is_dir()
    read = None if is_run else read_recipe(target, sets)
    folder = _folder(target if is_run else None, output, read)
    quiet_libraries()
    from seawall.pipeline.progress import Quiet, TerminalReporter
    from seawall.pipeline.steer import document

    def work(reporter: Reporter) -> SteeringResult:
        from seawall.pipeline.steer import steer_recipe, steer_run

        if read is None:
            return steer_run(folder, sets or (), reporter=reporter)
        return steer_recipe(read[0], folder, text=read[1], reporter=reporter)

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


def _show(found: SteeringResult, folder: Path) -> None:
    from rich.console import Console

    from seawall.pipeline.steer_views import steering_table
    from seawall.runs.folder import RunFolder

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    console.print(steering_table(found))
    console.print(found.claim, markup=False)
    run = RunFolder(folder)
    shown = [run.stage("steer") / "hardening"] if (run.stage("steer") / "hardening").is_dir() else []
    for path in (*shown, run.steering_report if run.steering_report.is_file() else run.report):
        console.print(str(path), soft_wrap=True, markup=False)

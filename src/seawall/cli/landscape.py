"""`seawall landscape [RECIPE|RUN]`: how far can the weights move before the model answers harmful requests?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from seawall.cli.common import (
    JsonOption,
    OutputOption,
    SetOption,
    TargetArgument,
    open_target,
    print_json,
    quiet_libraries,
    results_console,
)

if TYPE_CHECKING:
    from seawall.artifacts.landscape import LandscapeResult
    from seawall.runs.progress import Reporter


def landscape(
    target: TargetArgument = None,
    *,
    sets: SetOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the harmful rate while the weights move: along alignment, along a fine-tuning, and at random.

    landscape.base names the model that it was aligned from; landscape.tuned or landscape.adapter a fine-tuned one. A
    run need not be finished. No weight is written; an interrupted landscape goes on.
    """
    folder, read = open_target(target, sets, output)
    with quiet_libraries():
        from seawall.jobs.landscape import document
        from seawall.runs.progress import Quiet, TerminalReporter

    def work(reporter: Reporter) -> LandscapeResult:
        from seawall.jobs.landscape import landscape_recipe, landscape_run

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


def _show(found: LandscapeResult, folder: Path) -> None:
    from seawall.methods.landscape.view import landscape_table
    from seawall.runs.folder import RunFolder

    console = results_console()
    console.print(landscape_table(found))
    console.print(found.claim, markup=False)
    console.print(str(RunFolder(folder).landscape_report), soft_wrap=True, markup=False)

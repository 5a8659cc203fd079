"""`seawall landscape [RECIPE|RUN]`: measures how far the weights can move before the model answers harmful requests."""

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
    """Measure the harmful rate along directions in weight space: of alignment, of a fine-tuning, and random ones.

    landscape.base names the base model; landscape.tuned or landscape.adapter
    names a fine-tuned model. A run need not be finished. No weight is written.
    An interrupted landscape resumes.
    """
    folder, recipe = open_target(target, sets, output)
    with quiet_libraries():
        from seawall.jobs.landscape import document
        from seawall.runs.progress import Quiet, TerminalReporter

    def work(reporter: Reporter) -> LandscapeResult:
        from seawall.jobs.landscape import landscape_recipe, landscape_run

        if recipe is None:
            return landscape_run(folder, sets or (), reporter=reporter)
        resolved, text = recipe
        return landscape_recipe(resolved, folder, text=text, reporter=reporter)

    if as_json:
        work(Quiet())
        print_json(document(folder))
        return
    with TerminalReporter() as reporter:
        result = work(reporter)
    _show(result, folder)


def _show(result: LandscapeResult, folder: Path) -> None:
    from seawall.methods.landscape.view import landscape_table
    from seawall.runs.folder import RunFolder

    console = results_console()
    console.print(landscape_table(result))
    console.print(result.claim)
    console.print(str(RunFolder(folder).landscape_report), soft_wrap=True)

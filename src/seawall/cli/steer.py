"""`seawall steer [RECIPE|RUN]`: how far can refusal be moved at inference, and by what?"""

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
    from seawall.artifacts.steering import SteeringResult
    from seawall.runs.progress import Reporter


def steer(
    target: TargetArgument = None,
    *,
    sets: SetOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how far one direction, one expert or attention can move refusal (steer.mode: suppress or induce).

    A run need not be finished. No model is written; `steer.mode=induce` leaves steer/hardening for `seawall.load`.
    """
    folder, read = open_target(target, sets, output)
    with quiet_libraries():
        from seawall.jobs.steer import document
        from seawall.runs.progress import Quiet, TerminalReporter

    def work(reporter: Reporter) -> SteeringResult:
        from seawall.jobs.steer import steer_recipe, steer_run

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


def _show(found: SteeringResult, folder: Path) -> None:
    from seawall.methods.steer.view import steering_table
    from seawall.runs.folder import RunFolder

    console = results_console()
    console.print(steering_table(found))
    console.print(found.claim, markup=False)
    run = RunFolder(folder)
    shown = [run.stage("steer") / "hardening"] if (run.stage("steer") / "hardening").is_dir() else []
    for path in (*shown, run.steering_report if run.steering_report.is_file() else run.report):
        console.print(str(path), soft_wrap=True, markup=False)

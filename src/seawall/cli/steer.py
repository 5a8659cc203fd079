"""`seawall steer [RECIPE|RUN]`: measures how far refusal can be steered at inference."""

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
    """Measure how far a direction, a single expert or attention moves refusal (steer.mode: suppress or induce).

    A run need not be finished. No model is written; `steer.mode=induce` writes steer/hardening for `seawall.load`.
    """
    folder, recipe = open_target(target, sets, output)
    with quiet_libraries():
        from seawall.jobs.steer import document
        from seawall.runs.progress import Quiet, TerminalReporter

    def work(reporter: Reporter) -> SteeringResult:
        from seawall.jobs.steer import steer_recipe, steer_run

        if recipe is None:
            return steer_run(folder, sets or (), reporter=reporter)
        resolved, text = recipe
        return steer_recipe(resolved, folder, text=text, reporter=reporter)

    if as_json:
        work(Quiet())
        print_json(document(folder))
        return
    with TerminalReporter() as reporter:
        result = work(reporter)
    _show(result, folder)


def _show(result: SteeringResult, folder: Path) -> None:
    from seawall.methods.steer.view import steering_table
    from seawall.runs.folder import RunFolder

    console = results_console()
    console.print(steering_table(result))
    console.print(result.claim)
    run = RunFolder(folder)
    hardening = [run.stage("steer") / "hardening"] if (run.stage("steer") / "hardening").is_dir() else []
    for path in (*hardening, run.steering_report if run.steering_report.is_file() else run.report):
        console.print(str(path), soft_wrap=True)

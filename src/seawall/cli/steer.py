"""`seawall steer [RECIPE|RUN]`: measures how far refusal can be steered at inference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from seawall.cli.common import (
    DryRunOption,
    JsonOption,
    LimitOption,
    OutputOption,
    QuietOption,
    SetOption,
    TargetArgument,
    open_target,
    print_json,
    print_limit,
    quiet_libraries,
    reporting,
    results_console,
    shared_launch,
    with_limit,
)
from seawall.cli.plan import show_plan

if TYPE_CHECKING:
    from seawall.artifacts.steering import SteeringResult
    from seawall.runs.progress import Reporter


def steer(
    target: TargetArgument = None,
    *,
    sets: SetOption = None,
    limit: LimitOption = None,
    output: OutputOption = None,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how far a direction, a single expert or attention moves refusal (steer.mode: suppress or induce).

    A run need not be finished. No model is written; `steer.mode=induce` writes steer/hardening for `seawall.load`.
    """
    changes = with_limit(sets, limit)
    folder, recipe = open_target(target, changes, output)
    with quiet_libraries():
        from seawall.jobs.steer import document
        from seawall.shell.job import recipe_of_run

    described = recipe_of_run(folder, changes, section="steer")[0] if recipe is None else recipe[0]
    if dry_run:
        show_plan(described, "steer", as_json=as_json)
        return

    def work(reporter: Reporter) -> SteeringResult:
        from seawall.jobs.steer import steer_recipe, steer_run

        if recipe is None:
            return steer_run(folder, changes, reporter=reporter)
        resolved, text = recipe
        return steer_recipe(resolved, folder, text=text, reporter=reporter)

    with shared_launch(described), reporting(quiet=quiet or as_json) as reporter:
        result = work(reporter)
    if as_json:
        print_json(document(folder))
        return
    _show(result, folder)
    print_limit(results_console(), described.data.limit)


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

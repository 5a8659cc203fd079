"""`seawall landscape [RECIPE|RUN]`: measures how far the weights can move before the model answers harmful requests."""

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
    from seawall.artifacts.landscape import LandscapeResult
    from seawall.runs.progress import Reporter


def landscape(
    target: TargetArgument = None,
    *,
    sets: SetOption = None,
    limit: LimitOption = None,
    output: OutputOption = None,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the harmful rate along directions in weight space: of alignment, of a fine-tuning, and random ones.

    landscape.base names the base model; landscape.tuned or landscape.adapter
    names a fine-tuned model. A run need not be finished. No weight is written.
    An interrupted landscape resumes.
    """
    changes = with_limit(sets, limit)
    folder, recipe = open_target(target, changes, output)
    with quiet_libraries():
        from seawall.jobs.landscape import STAGE, document
        from seawall.shell.job import recipe_of_run

    described = recipe_of_run(folder, changes, section=STAGE)[0] if recipe is None else recipe[0]
    if dry_run:
        show_plan(described, STAGE, as_json=as_json)
        return

    def work(reporter: Reporter) -> LandscapeResult:
        from seawall.jobs.landscape import landscape_recipe, landscape_run

        if recipe is None:
            return landscape_run(folder, changes, reporter=reporter)
        resolved, text = recipe
        return landscape_recipe(resolved, folder, text=text, reporter=reporter)

    with shared_launch(described), reporting(quiet=quiet or as_json) as reporter:
        result = work(reporter)
    if as_json:
        print_json(document(folder))
        return
    _show(result, folder)
    print_limit(results_console(), described.data.limit)


def _show(result: LandscapeResult, folder: Path) -> None:
    from seawall.methods.landscape.view import landscape_table
    from seawall.runs.folder import RunFolder

    console = results_console()
    console.print(landscape_table(result))
    console.print(result.claim)
    console.print(str(RunFolder(folder).landscape_report), soft_wrap=True)

"""`seawall tune RECIPE`: fine-tunes on a task by several methods, and measures their effect on refusals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from seawall.cli.common import (
    DryRunOption,
    JsonOption,
    LimitOption,
    OutputOption,
    QuietOption,
    RecipeArgument,
    SetOption,
    print_json,
    print_limit,
    quiet_libraries,
    read_recipe,
    reporting,
    results_console,
    run_folder,
    with_limit,
)
from seawall.cli.plan import show_plan

if TYPE_CHECKING:
    from seawall.artifacts.tuning import TuningResult
    from seawall.runs.progress import Reporter


def tune(
    recipe: RecipeArgument = None,
    *,
    sets: SetOption = None,
    limit: LimitOption = None,
    output: OutputOption = None,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune on a task by several methods (tune.methods), and measure refusals and task score before and after.

    Each method and seed writes an adapter for PEFT. The same command adds
    further methods and seeds to a run. On several GPUs:
    accelerate launch -m seawall tune RECIPE.yaml
    """
    resolved, text = read_recipe(recipe, with_limit(sets, limit))
    if dry_run:
        show_plan(resolved, "tune", as_json=as_json)
        return
    folder = run_folder(resolved, output)
    with quiet_libraries():
        from seawall.jobs.tune import document

    def work(reporter: Reporter) -> TuningResult | None:
        from seawall.jobs.tune import tune_recipe

        return tune_recipe(resolved, folder, text=text, reporter=reporter)

    with reporting(quiet=quiet or as_json) as reporter:
        result = work(reporter)
    if result is None:
        return
    if as_json:
        print_json(document(folder))
        return
    _show(result, folder)
    print_limit(results_console(), resolved.data.limit)


def _show(result: TuningResult, folder: Path) -> None:
    from seawall.methods.tune.view import tuning_table
    from seawall.runs.folder import RunFolder

    console = results_console()
    if result.figures:
        console.print(tuning_table(result))
    for path in (*(folder / row.adapter for row in result.rows if row.adapter), RunFolder(folder).tuning_report):
        console.print(str(path), soft_wrap=True)

"""`seawall tune RECIPE`: fine-tunes on a task by several methods, and measures their effect on refusals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from seawall.cli.common import (
    JsonOption,
    OutputOption,
    RecipeArgument,
    SetOption,
    print_json,
    quiet_libraries,
    read_recipe,
    results_console,
    run_folder,
)

if TYPE_CHECKING:
    from seawall.artifacts.tuning import TuningResult
    from seawall.runs.progress import Reporter


def tune(
    recipe: RecipeArgument = None,
    *,
    sets: SetOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune on a task by several methods (tune.methods), and measure refusals and task score before and after.

    Each method and seed writes an adapter for PEFT. The same command adds
    further methods and seeds to a run. On several GPUs:
    accelerate launch -m seawall tune RECIPE.yaml
    """
    resolved, text = read_recipe(recipe, sets)
    folder = run_folder(resolved, output)
    with quiet_libraries():
        from seawall.jobs.tune import document
        from seawall.runs.progress import Quiet, TerminalReporter

    def work(reporter: Reporter) -> TuningResult | None:
        from seawall.jobs.tune import tune_recipe

        return tune_recipe(resolved, folder, text=text, reporter=reporter)

    if as_json:
        if work(Quiet()) is not None:
            print_json(document(folder))
        return
    with TerminalReporter() as reporter:
        result = work(reporter)
    if result is not None:
        _show(result, folder)


def _show(result: TuningResult, folder: Path) -> None:
    from seawall.methods.tune.view import tuning_table
    from seawall.runs.folder import RunFolder

    console = results_console()
    if result.figures:
        console.print(tuning_table(result))
    for path in (*(folder / row.adapter for row in result.rows if row.adapter), RunFolder(folder).tuning_report):
        console.print(str(path), soft_wrap=True)

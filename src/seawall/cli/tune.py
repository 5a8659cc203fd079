"""`seawall tune RECIPE`: fine-tune on a task by several methods; what is left of the refusals?"""

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
    """Fine-tune on a task by several methods (tune.methods), and measure refusals and the task before and after.

    Each method and seed leaves an adapter that PEFT loads. More of them can be added to a run by the same command. On
    several GPUs: accelerate launch -m seawall tune RECIPE.yaml
    """
    read, text = read_recipe(recipe, sets)
    folder = run_folder(read, output)
    with quiet_libraries():
        from seawall.jobs.tune import document
        from seawall.runs.progress import Quiet, TerminalReporter

    def work(reporter: Reporter) -> TuningResult | None:
        from seawall.jobs.tune import tune_recipe

        return tune_recipe(read, folder, text=text, reporter=reporter)

    if as_json:
        if work(Quiet()) is not None:
            print_json(document(folder))
        return
    with TerminalReporter() as reporter:
        found = work(reporter)
    if found is not None:
        _show(found, folder)


def _show(found: TuningResult, folder: Path) -> None:
    from seawall.methods.tune.view import tuning_table
    from seawall.runs.folder import RunFolder

    console = results_console()
    if found.figures:
        console.print(tuning_table(found))
    for path in (*(folder / row.adapter for row in found.rows if row.adapter), RunFolder(folder).tuning_report):
        console.print(str(path), soft_wrap=True, markup=False)

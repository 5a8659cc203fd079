"""`seawall run` and its stages one at a time; all go on with the run in the same folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

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


def run(
    recipe: RecipeArgument = None, sets: SetOption = None, output: OutputOption = None, as_json: JsonOption = False
) -> None:
    """Find, repair and verify: profile, select, evaluate, repair, evaluate, export, report."""
    run_until("report", recipe, sets, output, as_json=as_json)


def profile(
    recipe: RecipeArgument = None, sets: SetOption = None, output: OutputOption = None, as_json: JsonOption = False
) -> None:
    """Collect successful jailbreaks and count the experts that they use."""
    run_until("profile", recipe, sets, output, as_json=as_json)


def select(
    recipe: RecipeArgument = None, sets: SetOption = None, output: OutputOption = None, as_json: JsonOption = False
) -> None:
    """Choose the safety-critical experts (and profile first, where that is not done)."""
    run_until("select", recipe, sets, output, as_json=as_json)


def repair(
    recipe: RecipeArgument = None, sets: SetOption = None, output: OutputOption = None, as_json: JsonOption = False
) -> None:
    """Train the selected experts and the routers (after the stages before, where they are not done)."""
    run_until("repair", recipe, sets, output, as_json=as_json)


def report(
    recipe: RecipeArgument = None, sets: SetOption = None, output: OutputOption = None, as_json: JsonOption = False
) -> None:
    """Write report, summary and samples of a run again (stages that are done are skipped).

    The folder of a finished run may stand for the recipe: its report is then written again, and nothing else.
    """
    if recipe is not None and recipe.is_dir():
        _rewrite(recipe, sets, output, as_json=as_json)
        return
    run_until("report", recipe, sets, output, as_json=as_json)


def _rewrite(run: Path, sets: list[str] | None, output: Path | None, *, as_json: bool) -> None:
    from seawall.errors import ConfigError

    if sets or output:
        raise ConfigError(f"{run} is a run", got="--set or --output", remedy="leave them out, or name a recipe file")
    quiet_libraries()
    import typer

    from seawall.jobs.report import rewrite_report

    path = rewrite_report(run)
    if as_json:
        print_json({"run": str(run), "report": str(path)})
    else:
        typer.echo(str(path))


def run_until(last: str, path: Path | None, sets: list[str] | None, output: Path | None, *, as_json: bool) -> None:
    """Runs a recipe until `last`, one of the pipeline's stages, and shows what came of it."""
    recipe, text = read_recipe(path, sets)
    quiet_libraries()
    from seawall.jobs.run import Outcome, run_recipe
    from seawall.runs.progress import Quiet, TerminalReporter

    folder = run_folder(recipe, output)
    if as_json:
        print_json(_result(run_recipe(recipe, folder, text=text, reporter=Quiet(), until=last), last))
        return
    with TerminalReporter() as reporter:
        outcome: Outcome = run_recipe(recipe, folder, text=text, reporter=reporter, until=last)
    _show(outcome, last)


def _result(outcome: Any, last: str) -> dict[str, Any]:
    if outcome.summary is not None:
        return dict(outcome.summary)
    found: dict[str, Any] = {"run": str(outcome.run.path), "finished": last}
    if outcome.rates:
        found["rates"] = {name: _plain(one.groups) for name, one in outcome.rates}
        found["gold_answer_loss"] = {name: one.gold_loss for name, one in outcome.rates}
        found["capability"] = {name: _scores(one.capability) for name, one in outcome.rates}
        found["changes"] = _plain(outcome.changes)
    return found


def _scores(capability: Sequence[Any]) -> dict[str, Any]:
    return {f"{one.task} {one.metric}": {"score": one.score, "stderr": one.stderr, "n": one.n} for one in capability}


def _plain(records: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asdict(record) for name, record in records.items()}


def _show(outcome: Any, last: str) -> None:
    """The headline on standard output, ending with the path that people want next."""
    from seawall.evaluation.view import headline_table

    console = results_console()
    if outcome.rates:
        console.print(headline_table(outcome.rates, outcome.changes))
    path = outcome.run.report if last == "report" else outcome.run.path
    console.print(str(path), soft_wrap=True, markup=False)

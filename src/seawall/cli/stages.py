"""`seawall run` and its single stages, all of which resume the run in the same folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from seawall.cli.common import (
    AcrossTemplatesOption,
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
    shared_launch,
    with_limit,
)
from seawall.cli.plan import show_plan
from seawall.visible import visible_line

if TYPE_CHECKING:
    from seawall.errors import SeawallError
    from seawall.evaluation.view import NamedResults

_Folder = Optional[Path]  # noqa: UP045 - typer reads these annotations


def _stages_until(last: str, verb: str, description: str) -> Callable[..., None]:
    """The command `verb`, which runs the stages of a recipe up to `last`."""

    def command(
        recipe: RecipeArgument = None,
        *,
        sets: SetOption = None,
        limit: LimitOption = None,
        output: OutputOption = None,
        dry_run: DryRunOption = False,
        quiet: QuietOption = False,
        as_json: JsonOption = False,
    ) -> None:
        changes = with_limit(sets, limit)
        if dry_run:
            show_plan(read_recipe(recipe, changes)[0], verb, as_json=as_json)
            return
        run_until(last, recipe, changes, output, quiet=quiet, as_json=as_json)

    command.__doc__ = description
    return command


run = _stages_until(
    "report", "run", "Run all stages of a repair: profile, select, evaluate, repair, evaluate, export, report."
)
profile = _stages_until("profile", "profile", "Collect successful attacks, and count the experts that they use.")
select = _stages_until("select", "select", "Select the safety-critical experts, after unfinished earlier stages.")
repair = _stages_until(
    "repair", "repair", "Train experts and routers as the recipe says, after unfinished earlier stages."
)


def report(
    recipe: Annotated[
        _Folder,
        typer.Argument(
            metavar="RUN|EVAL|RECIPE.yaml",
            help="Folder of a finished run or evaluation, or a recipe file.",
            show_default=False,
        ),
    ] = None,
    *,
    against: Annotated[
        _Folder,
        typer.Option(metavar="EVAL", help="With the folder of an evaluation: compare it with this one."),
    ] = None,
    across_templates: AcrossTemplatesOption = False,
    sets: SetOption = None,
    output: OutputOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write report, summary and samples of a run, after unfinished earlier stages.

    With the folder of a finished run in place of the recipe, only its report is written again; with that of an
    evaluation, its page, and with --against the page of both.
    """
    from seawall.errors import ConfigError

    if recipe is None and not sets and output is None:
        raise ConfigError(
            "seawall report needs to know of which run",
            got="no argument",
            expected="the folder of a run, or a recipe",
            remedy="name it (seawall report runs/lab); `seawall run` starts a repair of the embedded model",
        )
    if recipe is not None and recipe.is_dir():
        _rewrite(recipe, sets, output, as_json=as_json, against=against, across_templates=across_templates)
        return
    if against is not None:
        raise _not_compared(recipe)
    run_until("report", recipe, sets, output, quiet=quiet, as_json=as_json)


def _not_compared(path: Path | None) -> SeawallError:
    from seawall.errors import ConfigError

    return ConfigError(
        f"{path} is no evaluation",
        got="--against",
        expected="the folder of a `seawall eval`",
        remedy="leave out --against: the report of a run has its own before and after",
    )


def _rewrite(
    run: Path,
    sets: list[str] | None,
    output: Path | None,
    *,
    as_json: bool,
    against: Path | None,
    across_templates: bool,
) -> None:
    from seawall.errors import ConfigError

    if sets or output:
        raise ConfigError(
            f"{run} is a run", got="--set or --output", remedy="leave out these options, or name a recipe file"
        )
    with quiet_libraries():
        from seawall.jobs.evaluated import write_evaluation_page
        from seawall.jobs.report import rewrite_report
        from seawall.shell.evaluated import is_evaluation

    if is_evaluation(run):
        path = write_evaluation_page(run, against=against, across_templates=across_templates)
    elif against is not None:
        raise _not_compared(run)
    else:
        path = rewrite_report(run)
    if as_json:
        print_json({"run": str(run), "report": str(path)})
    else:
        typer.echo(visible_line(str(path)))


def run_until(
    last: str, path: Path | None, sets: list[str] | None, output: Path | None, *, quiet: bool, as_json: bool
) -> None:
    """Runs the stages of a recipe up to `last`, and shows the result."""
    recipe, text = read_recipe(path, sets)
    with quiet_libraries():
        from seawall.jobs.run import Outcome, run_recipe

    folder = run_folder(recipe, output)
    with shared_launch(recipe), reporting(quiet=quiet or as_json) as reporter:
        outcome: Outcome = run_recipe(recipe, folder, text=text, reporter=reporter, until=last)
    if as_json:
        print_json(_result(outcome, last))
    else:
        _show(outcome, last, recipe.data.limit)
    require_scored(outcome.rates)


def require_scored(rates: NamedResults) -> None:
    """Ends with exit code 1 and one line where a group has nothing scored; the numbers are written all the same."""
    from seawall.evaluation.view import nothing_scored

    problem = nothing_scored(rates)
    if problem is not None:
        typer.echo(visible_line(f"seawall: {problem}"), err=True)
        raise typer.Exit(1)


def _result(outcome: Any, last: str) -> dict[str, Any]:
    if outcome.summary is not None:
        return dict(outcome.summary)
    document: dict[str, Any] = {"run": str(outcome.run.path), "finished": last}
    if outcome.rates:
        document["rates"] = {name: _plain(result.groups) for name, result in outcome.rates}
        document["gold_answer_loss"] = {name: result.gold_loss for name, result in outcome.rates}
        document["capability"] = {name: _scores(result.capability) for name, result in outcome.rates}
        document["changes"] = _plain(outcome.changes)
    return document


def _scores(capability: Sequence[Any]) -> dict[str, Any]:
    return {
        f"{score.task} {score.metric}": {"score": score.score, "stderr": score.stderr, "n": score.n}
        for score in capability
    }


def _plain(records: Mapping[str, Any]) -> dict[str, Any]:
    return {name: asdict(record) for name, record in records.items()}


def _show(outcome: Any, last: str, limit: int | None) -> None:
    """The headline on standard output, ending with the path that people want next."""
    from seawall.evaluation.view import headline_table

    console = results_console()
    if outcome.rates:
        console.print(headline_table(outcome.rates, outcome.changes))
        print_limit(console, limit)
    choice = (outcome.summary or {}).get("repair", {})
    if choice.get("chosen_round") == 0:
        console.print(f"Not repaired: {choice['reason']}")
    path = outcome.run.report if last == "report" else outcome.run.path
    console.print(str(path), soft_wrap=True)

"""`seawall judge --probes FILE`: how far a judge agrees with replies that were labelled by reading."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from seawall.cli.common import (
    JsonOption,
    RecipeArgument,
    SetOption,
    print_json,
    quiet_libraries,
    read_recipe,
    results_console,
)

_File = Optional[Path]  # noqa: UP045 - typer reads these annotations
_Name = Optional[str]  # noqa: UP045


def judge(
    recipe: RecipeArgument = None,
    *,
    probes: Annotated[
        _File, typer.Option(metavar="FILE", help="Probes: replies with the verdict that is right, by kind.")
    ] = None,
    labels: Annotated[
        _File, typer.Option(metavar="FILE", help="Replies that you labelled by reading, in the same form.")
    ] = None,
    preset: Annotated[
        _Name, typer.Option(help="A small guard by name in place of the recipe's judge, such as qwen3guard-0.6b.")
    ] = None,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the recipe's judge on replies labelled by reading: agreement by kind, and every disagreement.

    Rows of JSONL or CSV: prompt, response, expected (refused, complied, evades
    or unscored), and where known kind and goal.
    """
    path = _one_of(probes, labels)
    changes = ["eval.judge.kind=guard", f"eval.judge.preset={preset}"] if preset is not None else []
    resolved, _ = read_recipe(recipe, [*changes, *(sets or ())])
    with quiet_libraries():
        from seawall.jobs.judge import agreement_lines, agreement_table, measure_judge

        result = measure_judge(resolved.eval.judge, path)
    if as_json:
        print_json(result.document())
        return
    console = results_console()
    console.print(agreement_table(result))
    for line in agreement_lines(result):
        console.print(line, soft_wrap=True)


def _one_of(probes: Path | None, labels: Path | None) -> Path:
    """The file of the one option that is given.

    Raises:
        ConfigError: none or both are given.
    """
    path = probes if labels is None else labels
    if path is None or (probes is not None and labels is not None):
        from seawall.errors import ConfigError

        got = "neither" if path is None else "both"
        raise ConfigError("seawall judge needs one file", got=got, expected="--probes FILE or --labels FILE")
    return path

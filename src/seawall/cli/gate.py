"""`seawall gate RUN|EVAL --max-asr 0.05 ...`: exit code 0 if every bound holds, else 1."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from seawall.cli.common import AcrossTemplatesOption, JsonOption, print_json, quiet_libraries, results_console

_Folder = Optional[Path]  # noqa: UP045 - typer reads these annotations
_Share = Optional[float]  # noqa: UP045 - typer reads these annotations


def gate(  # noqa: PLR0913 - a parameter for each option
    run: Annotated[Path, typer.Argument(metavar="RUN|EVAL", help="Folder of a finished run or evaluation.")],
    *,
    against: Annotated[
        _Folder,
        typer.Option(metavar="EVAL", help="For an evaluation: that of the model before, to bound changes."),
    ] = None,
    max_asr: Annotated[_Share, typer.Option(help="Maximum attack success rate of every family.")] = None,
    max_asr_unseen: Annotated[
        _Share, typer.Option(help="Maximum for families that the repair did not train on, in place of --max-asr.")
    ] = None,
    max_over_refusal_increase: Annotated[
        _Share, typer.Option(help="Maximum increase of the refusal rate of borderline prompts.")
    ] = None,
    max_benign_drop: Annotated[
        _Share, typer.Option(help="Maximum drop of the answer rate of harmless requests, plain and wrapped.")
    ] = None,
    max_wrapping_gap: Annotated[
        _Share,
        typer.Option(help="Maximum refusal rate of harmless requests inside the attacks' wrappings minus plainly."),
    ] = None,
    max_capability_drop: Annotated[
        _Share,
        typer.Option(help="Maximum drop of a capability score; without scores, increase of the loss on gold answers."),
    ] = None,
    min_plain_refusal: Annotated[_Share, typer.Option(help="Minimum refusal rate of plain harmful requests.")] = None,
    across_templates: AcrossTemplatesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check a run or an evaluation against bounds, by the ends of intervals; a run's exports too.

    Without a bound on the command line, those of the recipe's section `gate`
    hold; a bound on the command line takes the place of the recipe's.
    """
    with quiet_libraries():
        from seawall.jobs.gate import gate_folder, gate_table, recipe_bounds

    bounds = recipe_bounds(
        run,
        max_asr=max_asr,
        max_asr_unseen=max_asr_unseen,
        max_over_refusal_increase=max_over_refusal_increase,
        max_benign_drop=max_benign_drop,
        max_wrapping_gap=max_wrapping_gap,
        max_capability_drop=max_capability_drop,
        min_plain_refusal=min_plain_refusal,
    )
    result = gate_folder(run, bounds, against=against, across_templates=across_templates)
    if as_json:
        print_json(result.document())
    else:
        console = results_console()
        console.print(gate_table(result))
        for line in result.verdict():
            console.print(line, soft_wrap=True)
    if not result.passed:
        raise typer.Exit(1)

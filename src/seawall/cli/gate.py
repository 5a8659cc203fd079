"""`seawall gate RUN --max-asr 0.05 ...`: exit code 0 where every bound holds, 1 where one does not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from seawall.cli.common import JsonOption, print_json, quiet_libraries, results_console

_Share = Optional[float]  # noqa: UP045 - typer reads these annotations


def gate(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    *,
    max_asr: Annotated[_Share, typer.Option(help="Attack success rate, of every family.")] = None,
    max_asr_unseen: Annotated[
        _Share, typer.Option(help="The same of families the repair did not train on, in place of --max-asr.")
    ] = None,
    max_over_refusal_increase: Annotated[
        _Share, typer.Option(help="Refusals of borderline prompts, after minus before.")
    ] = None,
    max_benign_drop: Annotated[
        _Share, typer.Option(help="Harmless requests answered, plain and wrapped, before minus after.")
    ] = None,
    max_capability_drop: Annotated[_Share, typer.Option(help="Relative increase of the loss on gold answers.")] = None,
    min_plain_refusal: Annotated[_Share, typer.Option(help="Refusal rate of plain harmful requests.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Hold a finished run to bounds: the end of each 95 % interval must keep them, not the point estimate."""
    with quiet_libraries():
        from seawall.evaluation.gate import Bounds
        from seawall.jobs.gate import gate_run, gate_table

    bounds = Bounds(
        max_asr=max_asr,
        max_asr_unseen=max_asr_unseen,
        max_over_refusal_increase=max_over_refusal_increase,
        max_benign_drop=max_benign_drop,
        max_capability_drop=max_capability_drop,
        min_plain_refusal=min_plain_refusal,
    )
    found = gate_run(run, bounds)
    if as_json:
        print_json(found.document())
    else:
        console = results_console()
        console.print(gate_table(found))
    if not found.passed:
        raise typer.Exit(1)

"""`seawall diff A B`: compares two runs, or two checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seawall.cli.common import JsonOption, print_json, quiet_libraries


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder of a run or a checkpoint.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Folder of another run or checkpoint.")],
    as_json: JsonOption = False,
) -> None:
    """Compare two runs (experts, repairs, rates) or two checkpoints (changed tensors, abliteration)."""
    with quiet_libraries():
        from seawall.jobs import diff as differences

    difference = differences.diff(a, b)
    if as_json:
        print_json(differences.document(difference))
        return
    from seawall.jobs.diff import difference_tables
    from seawall.runs.console import PlainConsole

    console = PlainConsole()
    for table in difference_tables(difference):
        console.print(table)

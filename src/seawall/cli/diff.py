"""`seawall diff A B`: what differs between two runs, or between two checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seawall.cli.common import JsonOption, print_json, quiet_libraries


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A run folder, or a checkpoint folder.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another of the same kind.")],
    as_json: JsonOption = False,
) -> None:
    """Compare two runs (experts, repairs, rates) or two checkpoints (which experts, routers, other tensors changed)."""
    quiet_libraries()
    from seawall.jobs import diff as differences

    found = differences.diff(a, b)
    if as_json:
        print_json(differences.document(found))
        return
    from rich.console import Console

    from seawall.jobs.diff import difference_tables

    console = Console(highlight=False)
    for table in difference_tables(found):
        console.print(table)

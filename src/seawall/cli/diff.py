"""`seawall diff A B`: compares two evaluations, two runs, or two checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seawall.cli.common import AcrossTemplatesOption, JsonOption, print_json, quiet_libraries, results_console


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder of an evaluation, a run or a checkpoint.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another folder of the same kind.")],
    across_templates: AcrossTemplatesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare two evaluations (rates), two runs (experts, repairs, rates) or two checkpoints (changed tensors)."""
    with quiet_libraries():
        from seawall.jobs import diff as differences

    difference = differences.diff(a, b, across_templates=across_templates)
    if as_json:
        print_json(differences.document(difference))
        return
    console = results_console()
    for table in differences.difference_tables(difference):
        console.print(table)

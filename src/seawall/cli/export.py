"""`seawall export inspect`: what a folder holds, in the formats of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seawall.cli.common import JsonOption, print_json, quiet_libraries
from seawall.visible import visible_line

app = typer.Typer(
    no_args_is_help=True,
    help="Write a run for other tools: Inspect logs.",
)
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run, or of `seawall eval`.")]
NewFolder = Annotated[Path, typer.Option("--output", "-o", help="Folder for the files; must be new or empty.")]


@app.command("inspect")
def inspect(run: RunArgument, output: NewFolder, *, as_json: JsonOption = False) -> None:
    """Write every evaluation as a log of Inspect (`.eval`): `inspect view --log-dir OUTPUT` shows it.

    Each reply has the scores `complied` and `refused`, with the judge's reason;
    our rates with intervals are the metrics. Prompts and replies are in the
    log as they are in samples.jsonl. Needs `seawall[inspect]`.
    """
    with quiet_libraries():
        from seawall.formats.inspect_log import write_inspect_logs

    _print_paths(write_inspect_logs(run, output), as_json=as_json)


def _print_paths(paths: tuple[Path, ...], *, as_json: bool) -> None:
    if as_json:
        print_json({"files": [str(path) for path in paths]})
        return
    for path in paths:
        typer.echo(visible_line(str(path)))

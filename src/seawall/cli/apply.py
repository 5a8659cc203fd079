"""`seawall apply DELTA --model M -o OUT`: rebuilds a repaired checkpoint from its base model, or reverts the repair."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seawall.cli.common import JsonOption, print_json, quiet_libraries
from seawall.visible import visible_line


def apply(
    delta: Annotated[Path, typer.Argument(help="The `delta` folder of a run.")],
    model: Annotated[str, typer.Option("--model", "-m", help="The base model: `lab`, a folder, or a Hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the checkpoint; must be new or empty.")],
    revert: Annotated[bool, typer.Option(help="Remove the delta from the repaired model given as --model.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Rebuild the repaired checkpoint from base model and delta, bit for bit; or with --revert the base model."""
    from seawall.runs.publish import require_free

    require_free(output)
    with quiet_libraries():
        from seawall.artifacts.delta import Delta
        from seawall.config.load import checked_model
        from seawall.jobs.apply import apply_delta
        from seawall.runs.files import storage_errors

    config = checked_model(model, caller="--model", revision=revision)
    change = Delta.load(delta)
    with storage_errors(output):
        fingerprint = apply_delta(change, config, output, revert=revert)
    if as_json:
        print_json({"model": str(output), "weights": fingerprint})
    else:
        typer.echo(visible_line(f"{output}  weights {fingerprint}"))

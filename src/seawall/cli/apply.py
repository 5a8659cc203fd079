"""`seawall apply DELTA --model M -o OUT`: rebuilds a repaired checkpoint from its base, or takes the repair off."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seawall.cli.common import JsonOption, print_json, quiet_libraries


def apply(
    delta: Annotated[Path, typer.Argument(help="A `delta` folder of a run.")],
    model: Annotated[str, typer.Option("--model", "-m", help="The base model: `lab`, a folder, or a Hub id.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the checkpoint; must be new or empty.")],
    revert: Annotated[bool, typer.Option(help="Take the delta off a repaired model instead.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the checkpoint that base + delta make, bit for bit (or, with --revert, the base again)."""
    from seawall.runs.publish import require_free

    require_free(output)
    with quiet_libraries():
        from seawall.artifacts.delta import Delta
        from seawall.config.model import ModelConfig
        from seawall.jobs.export import apply_delta
        from seawall.runs.files import storage_errors

    change = Delta.load(delta)
    with storage_errors(output):
        fingerprint = apply_delta(change, ModelConfig(id=model, revision=revision), output, revert=revert)
    if as_json:
        print_json({"model": str(output), "weights": fingerprint})
    else:
        typer.echo(f"{output}  weights {fingerprint}")

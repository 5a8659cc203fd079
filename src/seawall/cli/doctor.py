"""`seawall doctor MODEL`: checks a model, and an adapter of it, before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seawall.cli.common import JsonOption, print_json, quiet_libraries, results_console


def doctor(
    model: Annotated[str, typer.Argument(help="`lab`, a folder, or a Hub id.")],
    adapter: Annotated[
        Path | None, typer.Option(help="Folder of a LoRA adapter: checks what it is and whether it fits the model.")
    ] = None,
    merge: Annotated[
        bool, typer.Option(help="With --adapter: load the weights, merge the adapter, and compare logits.")
    ] = True,
    as_json: JsonOption = False,
    trust_remote_code: Annotated[
        bool, typer.Option(help="Run Python code from the checkpoint's repository. Only for authors you trust.")
    ] = False,
) -> None:
    """Check which verbs work on a model, list its layers and experts, and check an adapter of it.

    Loads no weights, except to merge an adapter. Exit code 1: the adapter is wrong; 2: the model is refused.
    """
    with quiet_libraries():
        from seawall.config.load import checked_model
        from seawall.jobs.doctor import diagnose

    config = checked_model(model, caller="doctor", trust_remote_code=trust_remote_code)
    diagnosis = diagnose(config, adapter, merge=merge)
    if as_json:
        print_json(diagnosis.document())
    else:
        results_console().print(diagnosis.table())
    if not diagnosis.summary.supported:
        raise typer.Exit(2)
    if diagnosis.adapter is not None and not diagnosis.adapter.is_sound:
        raise typer.Exit(1)

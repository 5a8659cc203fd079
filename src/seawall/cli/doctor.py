"""`seawall doctor MODEL`: checks a model without loading its weights."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from seawall.cli.common import JsonOption, print_json, quiet_libraries

if TYPE_CHECKING:
    from seawall.models.files.inspect import ModelSummary


def doctor(
    model: Annotated[str, typer.Argument(help="`lab`, a folder, or a Hub id.")],
    as_json: JsonOption = False,
    trust_remote_code: Annotated[
        bool, typer.Option(help="Run Python code from the checkpoint's repository. Only for authors you trust.")
    ] = False,
) -> None:
    """Check whether seawall supports a model, and list its layers and experts; loads no weights."""
    with quiet_libraries():
        from seawall.config.load import checked_model
        from seawall.models.files.inspect import inspect_model
        from seawall.shell.model import open_checkpoint

    config = checked_model(model, caller="doctor", trust_remote_code=trust_remote_code)
    summary = inspect_model(open_checkpoint(config).config)
    if as_json:
        print_json({**asdict(summary), "supported": summary.supported})
    else:
        _show(summary)
    if not summary.supported:
        raise typer.Exit(2)


def _show(summary: ModelSummary) -> None:
    from seawall.jobs.facts import model_facts
    from seawall.runs.console import PlainConsole

    PlainConsole().print(model_facts(summary))

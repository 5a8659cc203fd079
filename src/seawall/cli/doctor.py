"""`seawall doctor MODEL`: checks a model, and an adapter of it, before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from seawall.cli.common import JsonOption, print_json, quiet_libraries, results_console


def doctor(
    model: Annotated[
        Optional[str],  # noqa: UP045 - typer reads this annotation
        typer.Argument(help="`lab`, a folder, or a Hub id.", show_default=False),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="Folder of a LoRA adapter: checks what it is and whether it fits the model.")
    ] = None,
    merge: Annotated[
        bool, typer.Option(help="With --adapter: load the weights, merge the adapter, and compare logits.")
    ] = True,
    plugins: Annotated[
        bool, typer.Option("--plugins", help="In place of a model: list the installed plugins, and whether they load.")
    ] = False,
    as_json: JsonOption = False,
    trust_remote_code: Annotated[
        bool, typer.Option(help="Run Python code from the checkpoint's repository. Only for authors you trust.")
    ] = False,
) -> None:
    """Check which verbs work on a model, list its layers and experts, and check an adapter of it.

    Loads no weights, except to merge an adapter. With --plugins: list attacks,
    judges and prompt sources of installed packages. Exit code 1: the adapter is
    wrong, or a plugin does not load; 2: the model is refused.
    """
    if model is None or plugins:
        _list_plugins(model, is_asked=plugins, as_json=as_json)
        return
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


def _list_plugins(model: str | None, *, is_asked: bool, as_json: bool) -> None:
    """Prints every installed plugin.

    Raises:
        ConfigError: neither a model nor --plugins is given, or both are.
        typer.Exit: with code 1, a plugin does not load.
    """
    from seawall.errors import ConfigError

    if not is_asked or model is not None:
        raise ConfigError(
            "seawall doctor needs a model or --plugins",
            got="neither" if model is None else "both",
            remedy="`seawall doctor lab` checks the embedded model",
        )
    from seawall.data.plugins import installed_plugins
    from seawall.jobs.plugins import plugin_document, plugin_table

    checks = installed_plugins()
    if as_json:
        print_json(plugin_document(checks))
    elif checks:
        results_console().print(plugin_table(checks))
    else:
        results_console().print("no plugins are installed")
    if any(check.problem for check in checks):
        raise typer.Exit(1)

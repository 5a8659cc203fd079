"""Pages of the site that are made at build time: the command line and the settings. A hook of mkdocs.yml.

A page asks for them by a comment of its own: `<!-- generated: cli -->`, `<!-- generated: settings -->`.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SOURCE = str(Path(__file__).resolve().parent.parent / "src")


def on_config(config: Any) -> Any:
    """Called by mkdocs before anything else: pages describe this repository's package, whatever is installed."""
    sys.path.insert(0, SOURCE)
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    for name, pages in GENERATED.items():
        mark = f"<!-- generated: {name} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, "\n".join(pages()))
    return markdown


def cli_pages() -> Iterator[str]:
    """Every verb with its arguments and options, from the commands themselves."""
    import typer

    from seawall.cli.app import app

    yield from _command(typer.main.get_command(app), "seawall")


def _command(command: Any, path: str) -> Iterator[str]:
    verbs = getattr(command, "commands", None)
    if verbs is not None:
        if path != "seawall":
            yield from (f"## {path}", "", _text(command.help), "")
        for name, verb in verbs.items():
            yield from _command(verb, f"{path} {name}")
        return
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    names = " ".join(parameter.metavar or parameter.name.upper() for parameter in arguments)
    yield from (
        f"{'##' if path.count(' ') == 1 else '###'} {path}",
        "",
        "```",
        f"{path} {names} [OPTIONS]".replace("  ", " "),
        "```",
        "",
    )
    yield from (_text(command.help), "", "| | meaning |", "|---|---|")
    for parameter in arguments:
        yield f"| `{parameter.metavar or parameter.name.upper()}` | {_cell(getattr(parameter, 'help', None))} |"
    for parameter in options:
        flags = ", ".join(f"`{flag}`" for flag in [*parameter.opts, *parameter.secondary_opts])
        yield f"| {flags} | {_cell(parameter.help)} |"
    yield ""


def settings_pages() -> Iterator[str]:
    """Every setting with its default, type and meaning, a table for each section."""
    from seawall.cli.settings import list_settings

    section = None
    for setting in list_settings():
        top = setting.path.split(".")[0] if "." in setting.path or setting.type == "section" else "recipe"
        if top != section:
            section = top
            yield from ("", f"## {top}", "", "| setting | default | type | meaning |", "|---|---|---|---|")
        kind = f" (`kind: {setting.kind}`)" if setting.kind else ""
        default = f"`{_cell(setting.default)}`" if setting.default else ""
        yield f"| `{setting.path}`{kind} | {default} | {_cell(setting.type)} | {_cell(setting.meaning)} |"


def _text(text: str | None) -> str:
    return "\n".join(line.strip() for line in (text or "").splitlines())


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


GENERATED = {"cli": cli_pages, "settings": settings_pages}

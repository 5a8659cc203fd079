"""Names act on no terminal: each string that is printed is one visible line, without markup, escapes and reordering."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from places import REPOSITORY
from seawall.cli import app
from seawall.runs.console import PlainConsole
from seawall.runs.progress import TerminalReporter

HOSTILE = (
    "[bold]name[/bold]", "[link=https://example.org]name[/link]", "[/]", "[red", "[@click=app.quit]x", ":skull:",
    "\x1b[2J\x1b[31mname", "\x1b]0;title\x07", "\x1b]8;;https://example.org\x1b\\name", "\x9b31m", "a\rb", "a\nb",
    "a\tb", "\u202egnp.exe\u202c", "\u2067x\u2069", "\ufeff\u200b\U000e0041", "a\x00b\x7f", "\u2028\u0085",
    "lone \udcff \ud83d",
)  # fmt: skip
SOURCE = REPOSITORY / "src" / "seawall"
names = st.sampled_from(HOSTILE) | st.text(st.characters(codec=None), max_size=12)


def printed(*renderables: object, terminal: bool = False) -> str:
    file = io.StringIO()
    console = PlainConsole(file=file, width=400, force_terminal=terminal, color_system=None)
    for renderable in renderables:
        console.print(renderable)
    return file.getvalue()


def is_visible(text: str) -> bool:
    """Whether no character acts; joiners and the blanks of other scripts are allowed, and line feeds between lines."""
    return all(char.isprintable() or char in "\n\u200c\u200d" or char.isspace() for char in text) and not (
        set(text) & set("\r\t\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029")
    )


@given(names, st.booleans())
def test_a_string_in_any_place_of_a_table_is_visible_and_complete(name: str, terminal: bool) -> None:
    table = Table(title=name, caption=name)
    table.add_column(name, footer=name, no_wrap=True)
    table.add_column("other", no_wrap=True)
    table.add_row(name, f"before {name}")
    text = printed(name, table, terminal=terminal)
    text.encode("utf-8")
    assert is_visible(text)


@pytest.mark.parametrize("name", HOSTILE[:6])
def test_markup_is_text(name: str) -> None:
    table = Table(name, title=name)
    table.add_row(name)
    assert printed(name, table).count(name) == 4


@given(names)
def test_progress_is_visible_on_a_terminal_and_in_a_log(name: str) -> None:
    for terminal in (False, True):
        file = io.StringIO()
        console = PlainConsole(file=file, width=400, force_terminal=terminal, color_system=None)
        reporter = TerminalReporter(console)
        reporter.stage(name)
        reporter.say(name)
        reporter.step(name, 1, 2)
        console.print(reporter._bar.get_renderable())
        assert is_visible(file.getvalue())


@given(names)
def test_an_error_is_one_visible_line(name: str) -> None:
    file = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", file)
        with pytest.raises(SystemExit):
            app._end(f"{name} does not exist", 2)
    text = file.getvalue()
    assert is_visible(text)
    assert text.count("\n") == 1


ALLOWED = {
    "print_json": "JSON escapes what is not ASCII",
    "settings": "words of seawall alone",
    "_version": "words of seawall alone",
    "_end": "through visible_line",
    "_write": "through visible_line",
    "report_defect": "through visible_line",
    "apply": "through visible_line",
    "_rewrite": "through visible_line",
    "_check_signature": "through visible_line",
    "_print_paths": "through visible_line",
    "tasks": "through visible_line, and two numbers",
    "sign": "through visible_line",
    "require_scored": "through visible_line",
    "main": "JSON to the process that started this one",
}
"""Functions that print without a console, and why they may."""


def writers(path: Path) -> set[str]:
    """Functions of a module that print past `PlainConsole`, and those that make another console."""
    tree = ast.parse(path.read_text("utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {
        function.name
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("print", "Console", "typer.echo", "sys.stderr.write", "sys.stdout.write")
    }


def test_nothing_is_printed_past_the_console() -> None:
    for path in SOURCE.rglob("*.py"):
        assert writers(path) <= set(ALLOWED), path


def test_no_module_but_the_console_enables_markup() -> None:
    for path in SOURCE.rglob("*.py"):
        text = path.read_text("utf-8")
        assert "from_markup" not in text, path
        assert path.name == "console.py" or "rich.console import Console" not in text, path

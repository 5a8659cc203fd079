"""The rules of the house that a machine can hold (docs/decisions/012): sizes, names, and where things are known."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import seawall
from places import REPOSITORY

SOURCE = REPOSITORY / "src" / "seawall"
MOST_MODULES = 24
MOST_LINES = 300
LONGER: dict[str, int] = {}
"""Modules that may be longer, with their lines; these numbers may only fall, and there may be three at most."""
FILLER_BINDINGS = 41
"""Assigned names and parameters that are filler words; the number may only fall."""
FILLER = frozenset((REPOSITORY / "tests" / "filler_words.txt").read_text("utf-8").split())
GROUPS = SOURCE / "artifacts" / "groups.py"
GROUP_KEYS = frozenset(("borderline", "wrapped", "attack:", "wrapped_compliance", "benign_compliance"))
"""Keys of groups and their places in summaries; `plain`, `benign` and `attack` are words of data and pages too."""
NAMES_OF_PROMPT_SOURCES = ("data", "config", "lab")
"""Folders in which `borderline` names a source of prompts."""


def modules() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py") if path.name != "__init__.py")


def bindings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


def test_no_folder_is_too_full() -> None:
    counts = Counter(path.parent for path in modules())
    assert {folder: count for folder, count in counts.items() if count > MOST_MODULES} == {}


def test_no_module_is_too_long() -> None:
    lines = {path.relative_to(SOURCE).as_posix(): len(path.read_text("utf-8").splitlines()) for path in modules()}
    longer = {name: count for name, count in lines.items() if count > MOST_LINES}
    assert len(LONGER) <= 3
    assert {name: count for name, count in longer.items() if count > LONGER.get(name, MOST_LINES)} == {}
    assert set(LONGER) <= set(longer), "a module that is short by now is listed no longer"


def test_no_two_modules_of_a_folder_share_a_prefix() -> None:
    prefixes = Counter((path.parent, path.stem.partition("_")[0]) for path in modules() if "_" in path.stem)
    assert [key for key, count in prefixes.items() if count > 1] == []


def test_every_package_says_what_is_in_it() -> None:
    for path in SOURCE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), path


def test_filler_words_name_ever_fewer_things() -> None:
    count = sum(name in FILLER for path in modules() for name in bindings(ast.parse(path.read_text("utf-8"))))
    assert count <= FILLER_BINDINGS


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_groups_of_prompts_are_known_in_one_place(path: Path) -> None:
    if path == GROUPS:
        return
    keys = GROUP_KEYS - ({"borderline"} if path.relative_to(SOURCE).parts[0] in NAMES_OF_PROMPT_SOURCES else set())
    tree = ast.parse(path.read_text("utf-8"))
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert keys.isdisjoint(strings)


def test_every_public_name_is_in_the_docs() -> None:
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]
    text = "\n".join(page.read_text("utf-8") for page in pages)
    assert [name for name in seawall.__all__ if name not in text and name != "__version__"] == []

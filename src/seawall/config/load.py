"""Builds a `Recipe` from a recipe file and `--set` options."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from seawall.config.base import KeyPath
from seawall.config.model import ModelConfig
from seawall.config.problems import explain
from seawall.config.recipe import Recipe
from seawall.config.yaml_text import Document, parse_yaml
from seawall.disk import regular
from seawall.errors import ConfigError

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


@dataclass(frozen=True)
class Override:
    """One `--set key=value` of the command line."""

    path: tuple[str, ...]
    value: Any
    text: str


def load_recipe(path: str | Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        path: YAML file with sections of `Recipe`; None reads the recipe of the embedded model.
        overrides: settings as `a.b=c`, with `c` in YAML; later ones win.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or holds an unknown key or a wrong value.
    """
    where = "lab.yaml" if path is None else str(path)
    document = parse_yaml(recipe_text(path), where=where)
    if not isinstance(document.value, dict | None):
        expected = "sections of keys and values, such as `model:`"
        raise ConfigError(f"{where}:1: not a recipe", got=f"a {type(document.value).__name__}", expected=expected)
    changes = [parse_override(text) for text in overrides]
    data: dict[str, Any] = dict(document.value or {})
    data = _changed(data, changes)
    if path is not None:
        data.setdefault("name", _name_of(Path(path)))
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise explain(error, Recipe, origin=lambda key: _origin(key, where, document, changes)) from error


def change_recipe(document: Mapping[str, Any], overrides: Sequence[str], *, where: str, section: str | None) -> Recipe:
    """The recipe of a finished run with changed settings in one section; the run's results fix all other sections.

    Args:
        document: the recipe as `dump_resolved` wrote it.
        overrides: settings as `section.b=c`; later ones win.
        where: path of the document, for messages.
        section: the section that may change; None allows all.

    Raises:
        ConfigError: a setting of another section, an unknown key, or a wrong value.
    """
    changes = [parse_override(text) for text in overrides]
    for change in changes:
        if section is not None and change.path[0] != section:
            raise ConfigError(
                f"{change.text}: the settings of a finished run cannot change",
                expected=f"settings of `{section}` alone, such as --set {section}.seed=1",
                remedy="run the recipe with other settings into a new folder",
            )
    data = _changed(document, changes)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise explain(error, Recipe, origin=lambda key: _origin(key, where, Document(None, {}), changes)) from error


def changed_defaults(overrides: Sequence[str]) -> Recipe:
    """The default recipe with changed settings, for verbs without a recipe file.

    Raises:
        ConfigError: an unknown key, or a wrong value.
    """
    changes = [parse_override(text) for text in overrides]
    data = _changed({}, changes)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise explain(error, Recipe, origin=lambda key: _origin(key, "--set", Document(None, {}), changes)) from error


def checked_model(model: str | PathLike[str], *, caller: str, **settings: Any) -> ModelConfig:
    """A model and how to load it, from arguments.

    Args:
        model: a folder, a Hub id or `lab`.
        caller: the function or command, for messages.
        **settings: of `ModelConfig`.

    Raises:
        ConfigError: the model is no text and no path, or a setting is wrong.
    """
    if not isinstance(model, str | PathLike):
        raise ConfigError(f"{caller}: model is wrong", got=repr(model)[:60], expected="a folder, a Hub id or `lab`")
    try:
        return ModelConfig.model_validate({"id": str(model), **settings})
    except ValidationError as error:
        raise explain(error, ModelConfig, origin=lambda key: caller) from error


def recipe_text(path: str | Path | None) -> str:
    """The text of a recipe file; None reads the recipe of the embedded model.

    Raises:
        ConfigError: the file is missing, cannot be read or is not UTF-8.
    """
    if path is None:
        return resources.files("seawall.config").joinpath("lab.yaml").read_text("utf-8")
    try:
        return regular(Path(path)).read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"recipe {path} does not exist", remedy="name a YAML file") from error
    except OSError as error:
        raise ConfigError(f"recipe {path} cannot be read", got=error.strerror, expected="a YAML file") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text", expected="a YAML file in UTF-8") from error


def dump_resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON values with all defaults; `Recipe.model_validate` reads it back."""
    return recipe.model_dump(mode="json")


def parse_override(text: str) -> Override:
    """Parses one `a.b=c`.

    Raises:
        ConfigError: the text has no `=`, the key is malformed, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not _KEY.fullmatch(key):
        raise ConfigError("--set is wrong", got=repr(text), expected="KEY=VALUE, such as repair.rounds=2")
    return Override(tuple(key.split(".")), parse_yaml(value, where=f"--set {key}").value, f"--set {text}")


def _changed(data: Mapping[str, Any], changes: Sequence[Override]) -> dict[str, Any]:
    """A copy of `data` with all changes.

    A pinned `revision` belongs to the `id` beside it: another id takes it away, unless a change sets it as well.
    """
    stated = {change.path for change in changes}
    changed = dict(data)
    for change in changes:
        *section, key = change.path
        pinned = (*section, "revision")
        former = _at(changed, section)
        moves = key == "id" and former.get("id") != change.value
        if moves and former.get("revision") is not None and pinned not in stated:
            changed = _with(changed, pinned, None)
        changed = _with(changed, change.path, change.value)
    return changed


def _at(data: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    """The section at `path`; empty where there is none."""
    for key in path:
        inner = data.get(key)
        if not isinstance(inner, Mapping):
            return {}
        data = inner
    return data


def _with(data: dict[str, Any], path: Iterable[str], value: Any) -> dict[str, Any]:
    """A copy of `data` with `value` at `path`; missing sections are created."""
    first, *remaining = path
    if not remaining:
        return {**data, first: value}
    inner = data.get(first)
    if not isinstance(inner, dict | None):
        raise ConfigError(f"--set {'.'.join((first, *remaining))}: {first} is not a section", got=repr(inner))
    return {**data, first: _with(inner or {}, remaining, value)}


def _origin(key: KeyPath, where: str, document: Document, changes: Sequence[Override]) -> str:
    """Where the user wrote a key: the option that set it, else the line of its nearest parent in the file."""
    for change in reversed(changes):
        shared = min(len(key), len(change.path))
        if key[:shared] == change.path[:shared]:
            return change.text
    for length in range(len(key), 0, -1):
        if key[:length] in document.lines:
            return f"{where}:{document.lines[key[:length]]}"
    return where


def _name_of(path: Path) -> str:
    """The run's name from the recipe's file name, with characters unsuitable for a folder replaced by dashes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")[:100] or "seawall"

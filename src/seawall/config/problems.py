"""Turns pydantic's errors into one line: the key, its line in the file, got, expected, and the key perhaps meant."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from seawall.config.base import SECRET, KeyPath
from seawall.errors import ConfigError

_OPENINGS = ("Input should be ", "Input should have ", "String should have ", "Tuple should have ")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


@dataclass(frozen=True)
class KeyLocation:
    """The location of an error: the key's path as the user writes it, and the section that holds the last key."""

    path: KeyPath
    section: type[BaseModel] | None


def explain(error: ValidationError, model: type[BaseModel], *, origin: Callable[[KeyPath], str]) -> ConfigError:
    """One `ConfigError` about the first of pydantic's errors, with the number of further errors.

    Args:
        error: the errors.
        model: the validated model.
        origin: path of a key -> where the user wrote it, such as `recipe.yaml:12`.
    """
    details = error.errors(include_url=False)
    first = next((detail for detail in details if detail["type"] == "extra_forbidden"), details[0])
    location = locate(model, first["loc"])
    path = (*location.path, "kind") if first["type"].startswith("union_tag") else location.path
    place = origin(path)
    if first["type"] == SECRET:
        place = place.partition("=")[0]  # of `--set a.b=c`
    label = f"{place}: {_written(path)}" if path else place
    further = len(details) - 1
    more = f"{further} more wrong value{'s' if further > 1 else ''} after this one" if further else None
    if first["type"] == "extra_forbidden":
        return _unknown_key(label, model, location)
    if first["type"] in ("missing", "union_tag_not_found"):
        return ConfigError(f"{label} is missing", expected=_description(location, first), remedy=more)
    remedy = "; ".join(hint for hint in (_near_value(first), more) if hint)
    return ConfigError(f"{label} is wrong", got=_got(first), expected=_expected(first), remedy=remedy or None)


def locate(model: type[BaseModel], loc: tuple[int | str, ...]) -> KeyLocation:
    """Resolves pydantic's location, which also names the variants of unions, along the models."""
    path: list[str | int] = []
    annotation: Any = model
    section: type[BaseModel] | None = None
    for part in loc:
        annotation = _plain(annotation)
        variant = _variant(annotation, part)
        if variant is not None:
            annotation = variant
            continue
        path.append(part)
        if isinstance(part, int):
            section, annotation = None, next(iter(get_args(annotation)), None)
            continue
        section = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
        annotation = section.model_fields[part].annotation if section and part in section.model_fields else None
    return KeyLocation(tuple(path), section)


def variants(annotation: Any) -> dict[str, type[BaseModel]]:
    """The classes of a union by their `kind`; a single class with a `kind` counts as a union."""
    plain = _plain(annotation)
    members = get_args(plain) if get_origin(plain) in (Union, UnionType) else (plain,)
    models = [member for member in members if isinstance(member, type) and issubclass(member, BaseModel)]
    return {get_args(m.model_fields["kind"].annotation)[0]: m for m in models if "kind" in m.model_fields}


def key_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every possible key of a recipe, as `section.key`, with those of all variants of unions."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        plain = _plain(field.annotation)
        nested = variants(plain).values() or (
            [plain] if isinstance(plain, type) and issubclass(plain, BaseModel) else []
        )
        for section in nested:
            yield from key_paths(section, f"{prefix}{name}.")


def _plain(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def _variant(annotation: Any, part: int | str) -> type[BaseModel] | None:
    if get_origin(annotation) not in (Union, UnionType):
        return None
    return variants(annotation).get(str(part))


def _written(path: KeyPath) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).lstrip(".")


def _unknown_key(label: str, model: type[BaseModel], location: KeyLocation) -> ConfigError:
    name = str(location.path[-1])
    keys = list(location.section.model_fields) if location.section else []
    near = [_written((*location.path[:-1], key)) for key in difflib.get_close_matches(name, keys, n=3)]
    elsewhere = sorted({path for path in key_paths(model) if path.rsplit(".", 1)[-1] == name})
    meant = near or elsewhere[:3]
    remedy = f"did you mean {' or '.join(meant)}?" if meant else None
    return ConfigError(f"{label} is an unknown key", expected=f"one of {', '.join(keys)}", remedy=remedy)


def _description(location: KeyLocation, detail: ErrorDetails) -> str | None:
    field = location.section.model_fields.get(str(location.path[-1])) if location.section else None
    if field is None:
        return None
    if detail["type"] == "union_tag_not_found":
        return f"one of {', '.join(variants(field.annotation))}"
    text = field.description or ""
    return text[:1].lower() + text[1:].rstrip(".")


def _near_value(detail: ErrorDetails) -> str | None:
    """A suggestion: the allowed word that is most similar to the given one."""
    context = detail.get("ctx", {})
    allowed = re.findall(r"'([^']*)'", str(context.get("expected") or context.get("expected_tags") or ""))
    value = context.get("tag") or detail["input"]
    near = difflib.get_close_matches(value, allowed, n=1) if isinstance(value, str) else []
    return f"did you mean {near[0]}?" if near else None


def _got(detail: ErrorDetails) -> str:
    value = detail["input"]
    if detail["type"] == SECRET:
        return "a value that is not shown"
    if detail["type"] == "union_tag_invalid":
        return repr(detail["ctx"]["tag"])
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return _SHORT.repr(value)


def _expected(detail: ErrorDetails) -> str:
    match detail["type"]:
        case "union_tag_invalid":
            return f"one of {detail['ctx']['expected_tags']}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "a section of keys and values"
        case "tuple_type":
            return "a list"
    message = detail["msg"]
    for opening in _OPENINGS:
        message = message.removeprefix(opening)
    return f"a value {message}" if message.startswith(("greater", "less")) else message

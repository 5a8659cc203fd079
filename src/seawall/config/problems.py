"""pydantic's findings -> one line: the key's path, its line, what was got, what is expected, what was perhaps meant."""

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

from seawall.config.base import KeyPath
from seawall.errors import ConfigError

_OPENINGS = ("Input should be ", "Input should have ", "String should have ", "Tuple should have ")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


@dataclass(frozen=True)
class Place:
    """Where an error stands: the path as the user writes it, and the section that holds its last key."""

    path: KeyPath
    section: type[BaseModel] | None


def explain(error: ValidationError, model: type[BaseModel], *, origin: Callable[[KeyPath], str]) -> ConfigError:
    """Turn pydantic's findings into one `ConfigError` about the first, with a count of the others.

    Args:
        error: what pydantic found.
        model: the model that was validated.
        origin: path of a key -> where it was written, such as `recipe.yaml:12`.
    """
    details = error.errors(include_url=False)
    first = next((detail for detail in details if detail["type"] == "extra_forbidden"), details[0])
    place = locate(model, first["loc"])
    path = (*place.path, "kind") if first["type"].startswith("union_tag") else place.path
    label = f"{origin(path)}: {_written(path)}" if path else origin(path)
    further = len(details) - 1
    more = f"{further} more wrong value{'s' if further > 1 else ''} after this one" if further else None
    if first["type"] == "extra_forbidden":
        return _unknown_key(label, model, place)
    if first["type"] in ("missing", "union_tag_not_found"):
        return ConfigError(f"{label} is missing", expected=_description(place, first), remedy=more)
    remedy = "; ".join(hint for hint in (_near_value(first), more) if hint)
    return ConfigError(f"{label} is wrong", got=_got(first), expected=_expected(first), remedy=remedy or None)


def locate(model: type[BaseModel], loc: tuple[int | str, ...]) -> Place:
    """Follow pydantic's location, which also names the chosen variant of a union, down the models."""
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
    return Place(tuple(path), section)


def variants(annotation: Any) -> dict[str, type[BaseModel]]:
    """The classes of a union by their `kind`; a single class with a `kind` is a union of one."""
    plain = _plain(annotation)
    members = get_args(plain) if get_origin(plain) in (Union, UnionType) else (plain,)
    models = [member for member in members if isinstance(member, type) and issubclass(member, BaseModel)]
    return {get_args(m.model_fields["kind"].annotation)[0]: m for m in models if "kind" in m.model_fields}


def key_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key that a recipe may hold, as `section.key`, sections and variants of unions included."""
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


def _unknown_key(label: str, model: type[BaseModel], place: Place) -> ConfigError:
    name = str(place.path[-1])
    keys = list(place.section.model_fields) if place.section else []
    near = [_written((*place.path[:-1], key)) for key in difflib.get_close_matches(name, keys, n=3)]
    elsewhere = sorted({path for path in key_paths(model) if path.rsplit(".", 1)[-1] == name})
    meant = near or elsewhere[:3]
    remedy = f"did you mean {' or '.join(meant)}?" if meant else None
    return ConfigError(f"{label} is an unknown key", expected=f"one of {', '.join(keys)}", remedy=remedy)


def _description(place: Place, detail: ErrorDetails) -> str | None:
    field = place.section.model_fields.get(str(place.path[-1])) if place.section else None
    if field is None:
        return None
    if detail["type"] == "union_tag_not_found":
        return f"one of {', '.join(variants(field.annotation))}"
    text = field.description or ""
    return text[:1].lower() + text[1:].rstrip(".")


def _near_value(detail: ErrorDetails) -> str | None:
    """The allowed word nearest to the one that was given."""
    context = detail.get("ctx", {})
    allowed = re.findall(r"'([^']*)'", str(context.get("expected") or context.get("expected_tags") or ""))
    value = context.get("tag") or detail["input"]
    near = difflib.get_close_matches(value, allowed, n=1) if isinstance(value, str) else []
    return f"did you mean {near[0]}?" if near else None


def _got(detail: ErrorDetails) -> str:
    value = detail["input"]
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

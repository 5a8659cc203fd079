"""`seawall settings [SECTION]`: every setting of a recipe with its default, type and meaning."""

from __future__ import annotations

import difflib
import json
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, Union, get_args, get_origin

import typer

from seawall.cli.common import print_json

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
MIN_COLUMNS, MAX_COLUMNS = 60, 110
"""Limits to the width of the printed text; longer lines are hard to read."""
_MAX_PRINTED_BOUND = 10**9
"""Larger bounds are technical limits and are not printed."""
_WORDS = {int: "integer", float: "number", str: "text", bool: "true or false"}


@dataclass(frozen=True)
class Setting:
    """One key of a recipe, or the heading of a section.

    Attributes:
        path: key as in `--set`, such as `repair.expert.lr`.
        type: type in words, with bounds; `section` for a heading.
        default: default in YAML; `required` for a key without one, empty for a heading.
        meaning: description, one or two sentences.
        kind: the union's variants (`kind: guard`) that have the key; empty for keys outside unions.
    """

    path: str
    type: str
    default: str
    meaning: str
    kind: str = ""


def settings(
    section: Annotated[
        Optional[str],  # noqa: UP045 - typer reads this annotation
        typer.Argument(
            metavar="[SECTION]", help="A section or key, such as `repair` or `repair.expert`; default: all."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON schema, for editors and programs.")] = False,
) -> None:
    """Print every setting of a recipe, or of one section, with its default, type and meaning."""
    if as_json:
        print_json(recipe_schema(section))
        return
    width = max(MIN_COLUMNS, min(MAX_COLUMNS, shutil.get_terminal_size((MAX_COLUMNS, 24)).columns))
    typer.echo("\n".join(line for setting in list_settings(section) for line in _lines(setting, width)))


def list_settings(section: str | None = None) -> list[Setting]:
    """The settings of `section`, or of the whole recipe, in the order of the recipe.

    The variants of a union are listed at its first use only.

    Raises:
        ConfigError: the section or key does not exist.
    """
    from seawall.config.recipe import Recipe

    if section is None:
        return list(_walk(Recipe, "", listed=set()))
    prefix, name, field = _field(section)
    return list(_rows(f"{prefix}{name}", field, kind="", listed=set()))


def recipe_schema(section: str | None = None) -> dict[str, Any]:
    """The JSON schema of a recipe, or of one section or key.

    Raises:
        ConfigError: the section or key does not exist.
    """
    from pydantic import TypeAdapter

    from seawall.config.recipe import Recipe

    if section is None:
        schema = Recipe.model_json_schema()
    else:
        _, _, field = _field(section)
        annotated: Any = Annotated[field.annotation, field]
        schema = TypeAdapter(annotated).json_schema()
    return {"$schema": SCHEMA_DIALECT, **schema}


def schema_text() -> str:
    """The text of `recipes/schema.json`."""
    return json.dumps(recipe_schema(), indent=1) + "\n"


def _walk(model: type[BaseModel], prefix: str, *, listed: set[Any], kind: str = "") -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        if name != "kind":
            yield from _rows(f"{prefix}{name}", field, kind=kind, listed=listed)


def _rows(path: str, field: FieldInfo, *, kind: str, listed: set[Any]) -> Iterator[Setting]:
    """The setting, then its keys: those of a section, or those of each variant of a union."""
    meaning = field.description or ""
    section, choices = _section(field.annotation), _choices(field.annotation)
    if section is not None and not choices:
        optional = "section or null" if _nullable(field.annotation) else "section"
        yield Setting(path, optional, "null" if field.default is None else "", meaning, kind)
        yield from _walk(section, f"{path}.", listed=listed, kind=kind)
        return
    yield Setting(path, _type(field.annotation, field.metadata), _default(field), meaning, kind)
    if not choices or tuple(choices) in listed:
        return
    listed.add(tuple(choices))
    below = [
        setting for name, variant in choices.items() for setting in _walk(variant, f"{path}.", listed=listed, kind=name)
    ]
    yield from _merged(below)


def _merged(settings: list[Setting]) -> list[Setting]:
    """Merges a key that several variants share into one setting with all their kinds."""
    kinds: dict[Setting, list[str]] = {}
    for setting in settings:
        kinds.setdefault(replace(setting, kind=""), []).append(setting.kind)
    return [replace(setting, kind=", ".join(dict.fromkeys(names))) for setting, names in kinds.items()]


def _field(section: str) -> tuple[str, str, FieldInfo]:
    """The prefix, name and field of a dotted path.

    Raises:
        ConfigError: the section or key does not exist.
    """
    from seawall.config.problems import key_paths
    from seawall.config.recipe import Recipe
    from seawall.errors import ConfigError

    models: list[type[BaseModel]] = [Recipe]
    *parents, last = section.split(".")
    for name in parents:
        fields = [model.model_fields[name] for model in models if name in model.model_fields]
        models = [below for field in fields for below in _below(field.annotation)]
    field = next((model.model_fields[last] for model in models if last in model.model_fields), None)
    if field is None:
        paths = list(dict.fromkeys(key_paths(Recipe)))
        near = difflib.get_close_matches(section, paths, n=1) or [path for path in paths if path.endswith(f".{last}")]
        raise ConfigError(
            f"there is no setting {section}",
            expected=f"one of {', '.join(Recipe.model_fields)}, or a key below one",
            remedy=f"did you mean {near[0]}?" if near else None,
        )
    return "".join(f"{name}." for name in parents), last, field


def _below(annotation: Any) -> list[type[BaseModel]]:
    section = _section(annotation)
    return list(_choices(annotation).values()) or ([section] if section is not None else [])


def _plain(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def _members(annotation: Any) -> list[Any]:
    """The members of a union without None and `Annotated`; any other type is its only member."""
    plain = _plain(annotation)
    if not _is_union(plain):
        return [plain]
    return [member for part in get_args(plain) if part is not type(None) for member in _members(part)]


def _is_union(plain: Any) -> bool:
    return get_origin(plain) is Union or type(plain).__name__ == "UnionType"


def _nullable(annotation: Any) -> bool:
    plain = _plain(annotation)
    return _is_union(plain) and type(None) in get_args(plain)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model of a section; None for values, and for lists of sections."""
    from pydantic import BaseModel

    members = _members(annotation)
    model = members[0]
    return model if len(members) == 1 and isinstance(model, type) and issubclass(model, BaseModel) else None


def _choices(annotation: Any) -> dict[str, type[BaseModel]]:
    """The variants of a union, or of a list of unions, by `kind`."""
    from seawall.config.problems import variants

    members = _members(annotation)
    if len(members) == 1 and get_origin(members[0]) is tuple:
        return _choices(get_args(members[0])[0])
    named = [variants(member) for member in members] if len(members) > 1 else []
    return {kind: model for variant in named for kind, model in variant.items()}


def _type(annotation: Any, limits: list[Any]) -> str:
    plain = _plain(annotation)
    limits = [*limits, *_limits_of(annotation)]
    choices = _choices(annotation)
    if choices:
        several = get_origin(_members(annotation)[0]) is tuple
        text = f"{'list of sections' if several else 'section'} with kind: {', '.join(choices)}"
    elif _is_union(plain):
        members = [part for part in get_args(plain) if part is not type(None)]
        text = " or ".join(dict.fromkeys(_type(part, limits) for part in members))
    elif get_origin(plain) is Literal:
        text = " | ".join(map(str, get_args(plain)))
    elif get_origin(plain) is tuple:
        text = f"list: {_type(get_args(plain)[0], [])}"
    else:
        text = _WORDS.get(plain, "mapping" if get_origin(plain) is dict else str(plain)) + _bounds(plain, limits)
    return f"{text}, or null" if _nullable(plain) else text


def _limits_of(annotation: Any) -> list[Any]:
    """The bounds of an annotation such as `Annotated[int, Field(ge=1)]`."""
    return [limit for entry in getattr(annotation, "__metadata__", ()) for limit in getattr(entry, "metadata", [entry])]


def _bounds(plain: Any, limits: list[Any]) -> str:
    if plain not in (int, float):
        return ""
    bounds = {
        name: getattr(limit, name) for limit in limits for name in ("ge", "gt", "le", "lt") if hasattr(limit, name)
    }
    bounds = {name: value for name, value in bounds.items() if value is not None and abs(value) < _MAX_PRINTED_BOUND}
    if bounds.keys() == {"ge", "le"}:
        return f" from {_number(bounds['ge'])} to {_number(bounds['le'])}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return ",".join(f" {words[name]} {_number(value)}" for name, value in bounds.items())


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"


def _default(field: FieldInfo) -> str:
    from pydantic import BaseModel

    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, BaseModel):
        return f"{{kind: {value.model_dump().get('kind')}}}"
    if isinstance(value, tuple):
        return "[" + ", ".join(str(element) for element in value) + "]"
    if isinstance(value, float) and round(value, 4) != value:
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _lines(setting: Setting, width: int) -> Iterator[str]:
    """A blank line and a heading, or `key = default (type)` and the indented meaning."""
    if setting.type.startswith("section") and not setting.default and not setting.kind:
        yield ""
        yield from textwrap.wrap(f"{setting.path}: {setting.meaning}", width, subsequent_indent="  ")
        return
    kind = f"; kind: {setting.kind}" if setting.kind else ""
    first = f"  {setting.path} = {setting.default}  ({setting.type}{kind})"
    yield from textwrap.wrap(first, width, subsequent_indent="      ", break_long_words=False)
    indent = "      "
    yield from textwrap.wrap(
        setting.meaning, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )

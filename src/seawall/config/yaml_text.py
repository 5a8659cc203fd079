"""Recipe text -> plain values, with the line of every key, so that errors can point at it.

Stricter than plain YAML: a repeated key, an anchor, a tag or a key that is not a word is an error, and only `true`,
`false`, numbers and `null` are not text (YAML 1.2), so that `5e-5` is a number and `no` is a word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from seawall.errors import ConfigError

KeyPath = tuple[str | int, ...]

_STRING = "tag:yaml.org,2002:str"
_RESOLVERS = (
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:null", r"null|Null|NULL|~|", ("n", "N", "~", "")),
    ("tag:yaml.org,2002:int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2, without anchors and tags."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as the base declares it

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not supported", problem_mark=mark)
        if event.tag is not None:
            raise yaml.MarkedYAMLError(problem=f"tags such as {event.tag} are not supported", problem_mark=mark)
        return super().compose_node(parent, index)


for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), list(_first))


@dataclass(frozen=True)
class Document:
    """A parsed YAML text.

    Attributes:
        value: mappings, lists and scalars; `None` for an empty text.
        lines: line of each key or list item, counted from 1, by its path from the top.
    """

    value: Any
    lines: dict[KeyPath, int]


def parse_yaml(text: str, *, where: str) -> Document:
    """Read one YAML document.

    Args:
        text: the YAML.
        where: what the text is, for messages: a file's name or an option.

    Raises:
        ConfigError: not YAML, or one of the things refused above; names the line.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return Document(None, {})
        lines: dict[KeyPath, int] = {}
        _index(node, (), lines)
        return Document(loader.construct_document(node), lines)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{where}{_line_of(error)}: not valid YAML: {_problem(error)}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{where}:{line}: not valid YAML", got=f"a character that text cannot hold ({error.reason})"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{where}: a value cannot be read", got=str(error)) from error
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply", expected="sections of keys and values") from error


def _index(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int]) -> None:
    """Note the line of everything below `node`; refuse keys that repeat or are not words."""
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            _index(item, (*path, position), lines)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag != _STRING:
                raise yaml.MarkedYAMLError(problem="a key is not a word", problem_mark=key.start_mark)
            if (*path, key.value) in lines:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value} stands there twice", problem_mark=key.start_mark
                )
            lines[(*path, key.value)] = key.start_mark.line + 1
            _index(value, (*path, key.value), lines)


def _line_of(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f":{mark.line + 1}" if mark is not None else ""


def _problem(error: yaml.MarkedYAMLError) -> str:
    return " ".join(part for part in (error.context, error.problem) if part)

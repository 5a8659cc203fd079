"""YAML with the line of every key: YAML 1.2's scalars, no anchors, tags or repeated keys."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from seawall.config.base import KeyPath
from seawall.errors import ConfigError

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
    """SafeLoader with the scalars of YAML 1.2; refuses anchors and tags."""

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
    """A parsed YAML document.

    Attributes:
        value: mappings, lists and scalars; None for an empty document.
        lines: path of each key or list item -> its line, counted from 1.
    """

    value: Any
    lines: dict[KeyPath, int]


def parse_yaml(text: str, *, where: str) -> Document:
    """Parses one YAML document.

    Args:
        text: the YAML.
        where: file name or option that holds the text, for messages.

    Raises:
        ConfigError: the text is no YAML, or uses anchors, tags, repeated keys or keys that are no words.
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
            f"{where}:{line}: not valid YAML", got=f"a character that YAML does not allow ({error.reason})"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{where}: a value cannot be read", got=str(error)) from error
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply", expected="sections of keys and values") from error


def _index(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int]) -> None:
    """Records the line of every key and item below `node`; refuses keys that repeat or are no words."""
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            _index(item, (*path, position), lines)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag != _STRING:
                raise yaml.MarkedYAMLError(problem="a key is not a word", problem_mark=key.start_mark)
            if (*path, key.value) in lines:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value} is given twice", problem_mark=key.start_mark)
            lines[(*path, key.value)] = key.start_mark.line + 1
            _index(value, (*path, key.value), lines)


def _line_of(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f":{mark.line + 1}" if mark is not None else ""


def _problem(error: yaml.MarkedYAMLError) -> str:
    return " ".join(part for part in (error.context, error.problem) if part)

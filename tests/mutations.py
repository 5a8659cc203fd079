"""Seeded mutations of files that others write: bytes, JSON, YAML, templates, and bodies of responses."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterable
from typing import Any

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e-9, 1e308, 10**12, 10**30, -(2**63), float("nan"), float("inf")),
    *("", " ", "0", "1", "true", "null", "../..", "/", "/dev/zero", "\x00", "a\x00b", "\x1b[31m[bold]x", "\ud800"),
    *("\u202e", "x" * 5000, "{{ 1 / 0 }}", "sk-0123456789abcdefghij", "\n", "$HOME", "~", "%s", "{0.__class__}"),
    *([], {}, [[]], [None], [0], [1, 2, 3], ["a"], {"a": 1}, {"": ""}, [[[[[]]]]], [10**12], {"kind": "x"}),
)
"""Values of wrong types, at the ends of ranges, and strings that some reader obeys."""

TEMPLATES = (
    "{{ raise_exception('no') }}",
    "{{ 1 / 0 }}",
    "{{ messages[99].content }}",
    "{{ none.upper() }}",
    "{% if %}",
    "{% include 'other' %}",
    "{{ ''.__class__.__mro__ }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for message in messages %}{{ message.content + 1 }}{% endfor %}",
    "{{ messages | tojson | length + 'a' }}",
    "{% for i in range(10 ** 9) %}x{% endfor %}",
    "{{ 'x' * 10 ** 11 }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ strftime_now(1) }}",
    "{{ messages.pop() }}",
    "",
    "{{ bos_token }}",
    "{% for message in messages %}{{ message.role }}{% endfor %}",
)


def mutated_bytes(content: bytes, generator: random.Random) -> bytes:
    """The content with one to three changes: bits, cuts, insertions, repetitions, or all of it replaced."""
    data = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        start = generator.randrange(len(data) + 1)
        length = generator.choice((1, 2, 8, 64, 512))
        match generator.randrange(8):
            case 0 | 1:
                if start < len(data):
                    data[start] ^= 1 << generator.randrange(8)
            case 2:
                del data[start:]
            case 3:
                del data[start : start + length]
            case 4:
                data[start:start] = generator.randbytes(length)
            case 5:
                data[start:start] = data[start : start + length] * 2
            case 6:
                data[start : start + length] = bytes(length)
            case 7:
                data = bytearray(generator.choice((b"", b"null", b"{}", b"[]", b"[" * 9999, b"\xff\xfe", b"\x00" * 64)))
    return bytes(data)


def paths(document: Any, prefix: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The path of every value in a document of mappings and lists, that of the document itself left out."""
    items: Iterable[tuple[str | int, Any]] = ()
    if isinstance(document, dict | list):
        items = document.items() if isinstance(document, dict) else enumerate(document)
    return [path for key, value in items for path in ((*prefix, key), *paths(value, (*prefix, key)))]


def mutated_document(document: Any, generator: random.Random) -> Any:
    """A copy with one value replaced, removed, renamed or moved."""
    result = copy.deepcopy(document)
    *parents, key = generator.choice(paths(result))
    holder = result
    for parent in parents:
        holder = holder[parent]
    match generator.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[f"{key}_"] = holder.pop(key)
        case 2 if isinstance(holder, dict):
            holder["unknown"] = generator.choice(VALUES)
        case 3:
            holder[key] = copy.deepcopy(document)
        case 4:
            holder[key] = [holder[key]]
        case _:
            holder[key] = copy.deepcopy(generator.choice(VALUES))
    return result


def mutated_json(content: bytes, generator: random.Random) -> bytes:
    """JSON with a value changed, three times in four; else with its bytes changed."""
    if generator.random() < 0.25:
        return mutated_bytes(content, generator)
    return json.dumps(mutated_document(json.loads(content), generator)).encode()


def mutated_lines(content: bytes, generator: random.Random) -> bytes:
    """JSONL with one line changed."""
    lines = content.splitlines(keepends=True)
    index = generator.randrange(len(lines))
    lines[index] = mutated_json(lines[index], generator).rstrip(b"\n") + b"\n"
    return b"".join(lines)


def mutated_file(name: str, content: bytes, generator: random.Random) -> bytes:
    """A file's content, changed as its kind suggests."""
    if name.endswith(".jsonl") and content:
        return mutated_lines(content, generator)
    if (name.endswith(".json") or name == "DONE") and content.strip().startswith(b"{"):
        return mutated_json(content, generator)
    if name.endswith(".jinja") and generator.random() < 0.5:
        return generator.choice(TEMPLATES).encode()
    return mutated_bytes(content, generator)

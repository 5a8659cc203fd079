"""Reads the sources of a recipe into rows, and converts the rows to the prompts of `seawall.data.prompts`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from seawall.config.data import (
    BuiltinSource,
    DataConfig,
    HubSource,
    JsonlSource,
    PluginSource,
    RowFields,
    SourceConfig,
)
from seawall.data.files import Row, json_lines, json_strings, rows, short_repr
from seawall.data.plugins import Plugin, PluginRecord, load_plugin
from seawall.data.prompts import Benign, Borderline, Goal, Gold
from seawall.data.public import LAYOUTS, Purpose, read_public
from seawall.data.splits import NAMES, SplitName, key
from seawall.errors import DataError

MAX_PROMPTS = 1_000_000
"""Maximum number of prompts of a plugin, which may be a generator without an end."""
# Fields tried for the prompt where the recipe leaves `prompt_field` at its default.
_PROMPT_NAMES = ("prompt", "goal", "question", "instruction")
_BUILTIN_TEXT: dict[Purpose, str] = {"harmful": "goal", "benign": "prompt", "borderline": "prompt", "gold": "question"}


def load_goals(source: SourceConfig) -> list[Goal]:
    """The harmful goals of a source.

    Raises:
        DataError: the source cannot be read, has no goals, repeats an id, or has one goal in two splits.
    """
    return [Goal(_id(row), row.text("text"), row.optional("category"), _split(row)) for row in _load(source, "harmful")]


def load_benign(source: SourceConfig) -> list[Benign]:
    """The harmless instructions of a source. Raises DataError like `load_goals`."""
    return [
        Benign(_id(row), row.text("text"), row.optional("category"), _split(row), _imperative(row))
        for row in _load(source, "benign")
    ]


def load_borderline(source: SourceConfig) -> list[Borderline]:
    """The borderline prompts of a source: they sound unsafe but are safe. Raises DataError like `load_goals`."""
    return [
        Borderline(_id(row), row.text("text"), row.optional("category"), _split(row), row.optional("unsafe_twin"))
        for row in _load(source, "borderline")
    ]


def load_gold(source: SourceConfig) -> list[Gold]:
    """The gold questions of a source, with reference answers. Raises DataError like `load_goals`."""
    return [Gold(_id(row), row.text("text"), row.text("answer")) for row in _load(source, "gold")]


def load_refusals(refusals: str) -> tuple[str, ...]:
    """Refusals to train towards, from `builtin` or a JSON file with a list of texts.

    Raises:
        DataError: the file cannot be read, or holds no list of texts.
    """
    return tuple(json_strings(builtin_path("refusals.json") if refusals == "builtin" else Path(refusals)))


def read_builtin(source: SourceConfig, purpose: Purpose) -> list[Row]:
    """The prompts shipped with the package, as rows."""
    assert isinstance(source, BuiltinSource)
    column = _BUILTIN_TEXT[purpose]
    rows_read = json_lines(builtin_path(f"{purpose}.jsonl"))
    return [Row({**row.fields, "text": row.fields.get(column)}, row.where, row.number) for row in rows_read]


def read_jsonl(source: SourceConfig, purpose: Purpose) -> list[Row]:
    """The rows of a local file, read with the recipe's field names.

    Gold questions may also have the formats of MMLU (`choices` and a letter as answer), GSM8K (`#### 42` at the end of
    the answer), TruthfulQA (`best`) and instruction data (`instruction`, `input`, `output`).
    """
    assert isinstance(source, JsonlSource)
    path = Path(source.path)
    plain_rows = [_plain_row(row, source, purpose, stem=path.stem) for row in rows(path)]
    if not plain_rows:
        raise DataError(f"{source.path}: no {purpose} prompts in the file", got="no lines")
    return plain_rows


def _plain_row(row: Row, names: RowFields, purpose: Purpose, *, stem: str) -> Row:
    """The row with the fields of every source. Rows without an id get the stem and their number."""
    text, answer = _gold(row, names) if purpose == "gold" else (_prompt(row, names), "")
    fields: dict[str, object] = {
        "id": row.optional(names.id_field) or f"{stem}-{row.number}",
        "text": text,
        "answer": answer,
        "category": row.optional(names.category_field),
        "split": row.fields.get(names.split_field),
        "unsafe_twin": row.optional(names.unsafe_twin_field),
        "imperative": row.fields.get("imperative"),
    }
    return Row(fields, row.where, row.number)


def read_plugin(source: SourceConfig, purpose: Purpose) -> list[Row]:
    """The rows of a plugin: a function from a purpose and options to texts, or to mappings like the rows of a file.

    Raises:
        ConfigError: the plugin cannot be imported.
        DataError: the plugin fails, or yields no prompts.
    """
    assert isinstance(source, PluginSource)
    plugin = load_plugin("source", source.name)
    with plugin.running() as function:
        values = function(purpose, **source.options)
        if not isinstance(values, Iterable) or isinstance(values, str | bytes | Mapping):
            raise plugin.error("no list of prompts", got=type(values).__name__, expected="texts or mappings")
        prompts = list(islice(values, MAX_PROMPTS + 1))
    if not 0 < len(prompts) <= MAX_PROMPTS:
        got = f"more than {MAX_PROMPTS}" if prompts else "none"
        raise plugin.error(f"the number of {purpose} prompts is wrong", got=got, expected="at least one")
    stem = source.name.replace("/", ".").replace(":", ".")
    return [
        _plain_row(_plugin_row(plugin, value, n), RowFields(), purpose, stem=stem) for n, value in enumerate(prompts, 1)
    ]


def _plugin_row(plugin: Plugin, value: Any, number: int) -> Row:
    fields = {"prompt": value} if isinstance(value, str) else value
    if not isinstance(fields, Mapping):
        raise plugin.error(f"prompt {number} is no prompt", got=short_repr(value), expected="text or a mapping")
    return Row({str(name): entry for name, entry in fields.items()}, f"{plugin.record.label}, prompt {number}", number)


def source_plugins(config: DataConfig) -> tuple[PluginRecord, ...]:
    """A record per plugin among the sources of a recipe."""
    sources = (config.harmful, config.benign, config.borderline, config.gold)
    names = dict.fromkeys(source.name for source in sources if isinstance(source, PluginSource))
    return tuple(load_plugin("source", name).record for name in names)


def _read_public(source: SourceConfig, purpose: Purpose, *, kind: str) -> list[Row]:
    assert isinstance(source, HubSource)
    return read_public(source, kind, purpose)


SOURCES: dict[str, Callable[[SourceConfig, Purpose], list[Row]]] = {
    "builtin": read_builtin,
    "jsonl": read_jsonl,
    "plugin": read_plugin,
    **{kind: partial(_read_public, kind=kind) for kind in LAYOUTS},
}
"""Sources by their `kind` in recipes: readers of rows with id, text, category, split and the purpose's own fields."""


def _load(source: SourceConfig, purpose: Purpose) -> list[Row]:
    """Rows with unique ids. A repeated text is taken once; in two splits it would leak, which is an error."""
    ids: dict[str, Row] = {}
    texts: dict[str, Row] = {}
    for row in SOURCES[source.kind](source, purpose):
        first = texts.setdefault(key(row.text("text")), row)
        if first is not row and _split(first) == _split(row):
            continue
        if first is not row:
            raise row.error(
                "the prompt is in two splits",
                got=f"{row.optional('split')} here, {first.optional('split')} at {first.where}",
                expected="each prompt in one split",
                remedy="remove one of the two rows; otherwise the prompt is both trained on and tested",
            )
        earlier = ids.setdefault(_id(row), row)
        if earlier is not row:
            raise row.error(
                "the id is used twice", got=repr(_id(row)), expected=f"another id than that of {earlier.where}"
            )
    return list(texts.values())


def builtin_path(name: str) -> Path:
    """Path of a prompt file shipped with the package."""
    path = resources.files("seawall").joinpath("lab", "prompts", name)
    assert isinstance(path, Path), "seawall is installed as files, not as a zip"
    return path


def _id(row: Row) -> str:
    return row.text("id")


def _split(row: Row) -> SplitName | None:
    value = row.fields.get("split")
    if value is None or value == "":
        return None
    name = NAMES.get(str(value).strip().lower())
    if name is None:
        raise row.error("unknown split", got=repr(value), expected="train, validation or test")
    return name


def _imperative(row: Row) -> bool | None:
    value = row.fields.get("imperative")
    return value if isinstance(value, bool) else None


def _prompt(row: Row, names: RowFields) -> str:
    column = names.prompt_field
    if column == "prompt":
        column = next((name for name in _PROMPT_NAMES if name in row.fields), column)
    extra = row.optional("input") if column == "instruction" else ""
    return f"{row.text(column)}\n\n{extra}" if extra else row.text(column)


def _gold(row: Row, names: RowFields) -> tuple[str, str]:
    choices = row.fields.get("choices")
    if isinstance(choices, list):
        return _multiple_choice(row, [str(choice) for choice in choices])
    question = _prompt(row, names)
    column = next((name for name in (names.answer_field, "best", "output") if name in row.fields), names.answer_field)
    return question, worked_answer(row.text(column))


def worked_answer(answer: str) -> str:
    """GSM8K answers (`<<1+1=2>>` in the steps, `#### 2` at the end) as prose; other answers unchanged."""
    if "####" not in answer:
        return answer
    steps, _, result = re.sub(r"<<[^>]*>>", "", answer).rpartition("####")
    return f"{steps.strip()}\nThe answer is {result.strip()}."


def _multiple_choice(row: Row, choices: list[str]) -> tuple[str, str]:
    """MMLU: the question followed by its choices; the answer is letter and choice, so that the loss covers the text."""
    letters = [chr(ord("A") + index) for index in range(len(choices))]
    letter = row.text("answer").upper()
    if letter not in letters:
        raise row.error("the answer is not one of the choices", got=repr(letter), expected=", ".join(letters))
    listed = "\n".join(f"{name}. {choice}" for name, choice in zip(letters, choices, strict=True))
    return f"{row.text('question')}\n\n{listed}", f"{letter}. {choices[letters.index(letter)]}"

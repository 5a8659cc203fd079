"""Reads the sources of a recipe into rows, and converts the rows to the prompts of `seawall.data.prompts`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from seawall.config.data import (
    BuiltinSource,
    DataConfig,
    DatasetSource,
    FileSource,
    HubSource,
    JsonlSource,
    PluginSource,
    RowFields,
    SourceConfig,
)
from seawall.data.columns import truth
from seawall.data.fields import plain_row
from seawall.data.files import Row, json_lines, json_strings, rows, short_repr
from seawall.data.plugins import Plugin, PluginRecord, load_plugin
from seawall.data.prompts import Benign, Borderline, Goal, Gold
from seawall.data.public import LAYOUTS, Purpose, download, read_public
from seawall.data.splits import NAMES, SplitName, key
from seawall.data.types import Messages
from seawall.errors import DataError

MAX_PROMPTS = 1_000_000
"""Maximum number of prompts of a plugin, which may be a generator without an end."""
_BUILTIN_TEXT: dict[Purpose, str] = {"harmful": "goal", "benign": "prompt", "borderline": "prompt", "gold": "question"}


def load_goals(source: SourceConfig) -> list[Goal]:
    """The harmful goals of a source.

    Raises:
        DataError: the source cannot be read, has no goals, repeats an id, or has one goal in two splits.
    """
    return [
        Goal(_id(row), row.text("text"), row.optional("category"), _split(row), context=_context(row))
        for row in _load(source, "harmful")
    ]


def load_benign(source: SourceConfig) -> list[Benign]:
    """The harmless instructions of a source. Raises DataError like `load_goals`."""
    return [
        Benign(
            _id(row), row.text("text"), row.optional("category"), _split(row), _imperative(row), context=_context(row)
        )
        for row in _load(source, "benign")
    ]


def load_borderline(source: SourceConfig) -> list[Borderline]:
    """The borderline prompts of a source: they sound unsafe but are safe. Raises DataError like `load_goals`."""
    return [
        Borderline(
            _id(row),
            row.text("text"),
            row.optional("category"),
            _split(row),
            row.optional("unsafe_twin"),
            context=_context(row),
        )
        for row in _load(source, "borderline")
    ]


def load_gold(source: SourceConfig) -> list[Gold]:
    """The gold questions of a source, with reference answers. Raises DataError like `load_goals`."""
    return [Gold(_id(row), row.text("text"), row.text("answer"), _context(row)) for row in _load(source, "gold")]


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
    the answer), TruthfulQA (`best`) and instruction data (`instruction`, `input`, `output`). `prompt` may be a list of
    messages, as in TRL; a row may have `messages` in its place.
    """
    assert isinstance(source, JsonlSource)
    return _rows_of_file(source, Path(source.path), purpose)


def read_file(source: SourceConfig, purpose: Purpose) -> list[Row]:
    """The rows of a local file of any format; see `read_jsonl`."""
    assert isinstance(source, FileSource)
    return _rows_of_file(source, Path(source.path), purpose)


def _rows_of_file(names: RowFields, path: Path, purpose: Purpose) -> list[Row]:
    plain_rows = [plain_row(row, names, purpose, stem=path.stem) for row in rows(path)]
    if not plain_rows:
        raise DataError(f"{path}: no {purpose} prompts in the file", got="no lines")
    return plain_rows


def read_dataset(source: SourceConfig, purpose: Purpose) -> list[Row]:
    """The rows of any dataset of the Hub, read with the recipe's field names.

    Raises:
        DataError: the dataset cannot be downloaded, or has no rows; a row has no prompt.
    """
    assert isinstance(source, DatasetSource)
    loaded = download(source.id, source.subset, split=source.hub_split, revision=source.revision)
    rows_read = [Row(dict(fields), f"{source.id} row {number}", number) for number, fields in enumerate(loaded, 1)]
    if not rows_read:
        raise DataError(f"{source.id}: no {purpose} prompts in the split {source.hub_split}", got="no rows")
    return [plain_row(row, source, purpose, stem=source.id.replace("/", ".")) for row in rows_read]


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
        plain_row(_plugin_row(plugin, value, n), RowFields(), purpose, stem=stem) for n, value in enumerate(prompts, 1)
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
    "file": read_file,
    "dataset": read_dataset,
    "plugin": read_plugin,
    **{kind: partial(_read_public, kind=kind) for kind in LAYOUTS},
}
"""Sources by their `kind` in recipes: readers of rows with id, text, category, split and the purpose's own fields."""


def _load(source: SourceConfig, purpose: Purpose) -> list[Row]:
    """Rows with unique ids. A repeated text is taken once; in two splits it would leak, which is an error."""
    ids: dict[str, Row] = {}
    texts: dict[str, Row] = {}
    for row in SOURCES[source.kind](source, purpose):
        earlier_turns = [message.content for message in _context(row)]
        first = texts.setdefault("\n".join(map(key, (*earlier_turns, row.text("text")))), row)
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


def _context(row: Row) -> Messages:
    value = row.fields.get("context")
    return value if isinstance(value, tuple) else ()


def _imperative(row: Row) -> bool | None:
    return truth(row, "imperative")

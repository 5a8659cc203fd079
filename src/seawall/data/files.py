"""Streams the rows of local files with their line numbers; errors begin with `file:line:`."""

from __future__ import annotations

import csv
import importlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from seawall.disk import regular
from seawall.errors import DataError

_BOM = b"\xef\xbb\xbf"
_CONVERSATION = re.compile(r"\s*\[\s*\{\s*[\"'](?:role|content|from|value)[\"']\s*:")
"""The beginning of a list of messages that JSON or Python wrote into a cell."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file or of a Hub dataset. `where` locates it in error messages: `file:line`, `dataset row n`."""

    fields: dict[str, object]
    where: str
    number: int

    def error(self, what: str, *, got: object = None, expected: object = None, remedy: str | None = None) -> DataError:
        """An error that begins with the location of this row."""
        return DataError(f"{self.where}: {what}", got=got, expected=expected, remedy=remedy)

    def text(self, name: str) -> str:
        """The field `name` as text: stripped, not empty, and free of characters that break a tokenizer.

        Raises:
            DataError: the field is missing, empty or not text.
        """
        value = self.fields.get(name)
        if isinstance(value, str) and value.strip():
            problem = text_problem(value)
            if problem is not None:
                raise self.error(
                    f"field {name!r} holds {problem}", expected="plain text", remedy="remove the character"
                )
            if _CONVERSATION.match(value):
                raise self.error(
                    f"field {name!r} holds a conversation that is written as text",
                    got=short_repr(value),
                    expected="text, or a list of messages",
                    remedy="save the file as JSONL or Parquet, with the list itself in the field",
                )
            return value.strip()
        if name not in self.fields:
            names = ", ".join(map(repr, self.fields)) or "none"
            raise self.error(
                f"field {name!r} is missing", got=f"the fields {names}", remedy="add the field to this row"
            )
        raise self.error(
            f"field {name!r} holds no text",
            got=short_repr(value),
            expected="text",
            remedy="fill in the field, or remove the row",
        )

    def optional(self, name: str) -> str:
        """The field `name` as text, numbers converted; the empty string where it is missing or null."""
        value = self.fields.get(name)
        if value is None:
            return ""
        return self.text(name) if isinstance(value, str) and value.strip() else str(value).strip()


def short_repr(value: object) -> str:
    """The repr of a value for an error message, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def text_problem(text: str) -> str | None:
    """The character that makes a string unfit for a tokenizer, or None. JSON can escape it past the file's decoding."""
    if "\x00" in text:
        return "a NUL character"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "half a surrogate pair (broken text encoding)"
    return None


def json_lines(path: Path) -> Iterator[Row]:
    """The objects of a JSONL file, one at a time. Blank lines and a byte-order mark are allowed.

    Raises:
        DataError: the file cannot be read, or a line is not UTF-8, holds a NUL byte, or is not one JSON object.
    """
    for number, raw in _binary_lines(path):
        text = decode(raw, f"{path}:{number}")
        if text.strip():
            yield Row(_parse_object(text, f"{path}:{number}"), f"{path}:{number}", number)


def csv_rows(path: Path) -> Iterator[Row]:
    """The rows of a CSV file whose first line names the columns; a quoted field may span lines.

    Raises:
        DataError: the file cannot be read or is not UTF-8, two columns have one name, or a row has more or fewer
            fields than the first line.
    """
    reader = csv.DictReader((decode(raw, f"{path}:{number}") for number, raw in _binary_lines(path)), strict=True)
    try:
        _require_different(reader.fieldnames or (), f"{path}:1", "columns")
        for fields in reader:
            where = f"{path}:{reader.line_num}"
            if None in fields:
                raise DataError(
                    f"{where}: more fields than the first line has names",
                    expected=f"{len(reader.fieldnames or ())} fields",
                    remedy="quote fields that hold commas",
                )
            if None in fields.values():
                raise DataError(
                    f"{where}: fewer fields than the first line has names",
                    expected=f"{len(reader.fieldnames or ())} fields",
                    remedy="quote fields that hold line breaks, and write a comma for every empty field",
                )
            yield Row(dict(fields), where, reader.line_num)
    except csv.Error as error:
        raise DataError(
            f"{path}:{reader.line_num}: not CSV", got=str(error), expected="comma-separated fields, quoted where needed"
        ) from None


def json_items(path: Path) -> Iterator[Row]:
    """The objects of a JSON file that holds one list.

    Raises:
        DataError: the file cannot be read, or is no list of objects.
    """
    value = _parse(decode(b"".join(line for _, line in _binary_lines(path)), str(path)), str(path))
    if not isinstance(value, list):
        raise DataError(f"{path}: not a list of objects", got=short_repr(value), expected="[{...}, {...}]")
    for number, item in enumerate(value, start=1):
        where = f"{path}: item {number}"
        if not isinstance(item, dict):
            raise DataError(f"{where}: not a JSON object", got=short_repr(item), expected="objects in the list")
        yield Row(item, where, number)


def parquet_rows(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file, read with pyarrow, which comes with `datasets`.

    Raises:
        DataError: pyarrow is not installed, or the file cannot be read.
    """
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise DataError(
            f"{path}: Parquet needs the library `datasets`, which is not installed",
            remedy="pip install 'seawall[hub]', or convert the file to JSONL",
        ) from None
    try:
        number = 0
        for batch in parquet.ParquetFile(regular(path)).iter_batches():
            for fields in batch.to_pylist():
                number += 1
                yield Row(fields, f"{path}: row {number}", number)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable Parquet file", got=f"{type(error).__name__}: {error}") from None


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": json_lines,
    ".json": json_items,
    ".csv": csv_rows,
    ".parquet": parquet_rows,
}
"""Readers by file name suffix."""


def rows(path: Path) -> Iterator[Row]:
    """The rows of a JSONL, JSON, CSV or Parquet file, by its suffix.

    Raises:
        DataError: another suffix, or as the reader of that format.
    """
    if path.suffix.lower() not in READERS:
        suffixes = ", ".join(READERS)
        raise DataError(f"{path}: unknown file format", got=path.suffix or "no suffix", expected=suffixes)
    return READERS[path.suffix.lower()](path)


def json_strings(path: Path) -> list[str]:
    """The list of texts in a JSON file.

    Raises:
        DataError: the file cannot be read, or holds no list of texts.
    """
    raw = b"".join(line for _, line in _binary_lines(path))
    value = _parse(decode(raw, str(path)), str(path))
    if not isinstance(value, list) or not value:
        raise DataError(f"{path}: not a list of texts", got=short_repr(value), expected='["...", "..."]')
    for number, item in enumerate(value, start=1):
        if not isinstance(item, str) or not item.strip() or text_problem(item):
            raise DataError(
                f"{path}: item {number} of the list is not usable text", got=short_repr(item), expected="text"
            )
    return [str(item).strip() for item in value]


def decode(raw: bytes, where: str) -> str:
    """Decodes UTF-8.

    Raises:
        DataError: the bytes are not UTF-8, or hold a NUL byte (as UTF-16 and binary files do).
    """
    if b"\x00" in raw:
        raise DataError(
            f"{where}: NUL byte", got="binary data or UTF-16", expected="UTF-8 text", remedy="save the file as UTF-8"
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8",
            got=f"byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the line",
            expected="UTF-8 text",
            remedy="save the file as UTF-8",
        ) from None


def _binary_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines split at line feeds only, because JSON strings may hold other line separators such as U+2028 unescaped."""
    try:
        with regular(path).open("rb") as handle:
            for number, raw in enumerate(handle, start=1):
                yield number, raw.removeprefix(_BOM) if number == 1 else raw
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read", got=error.strerror or type(error).__name__, remedy="check the path in the recipe"
        ) from None


def _parse_object(text: str, where: str) -> dict[str, object]:
    value = _parse(text, where)
    if not isinstance(value, dict):
        raise DataError(f"{where}: not a JSON object", got=short_repr(value), expected="one JSON object per line")
    return value


def _require_different(names: Sequence[str], where: str, kind: str) -> None:
    """Refuses a repeated name, of which the last would win without a word."""
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise DataError(f"{where}: two {kind} are named {repeated!r}", remedy="rename or remove one")


def _parse(text: str, where: str) -> object:
    """Parses JSON. Multi-line JSON read as JSONL, truncated files and repeated fields fail here too."""

    def fields_of(pairs: list[tuple[str, object]]) -> dict[str, object]:
        _require_different([name for name, _ in pairs], where, "fields")
        return dict(pairs)

    try:
        value: object = json.loads(text, object_pairs_hook=fields_of)
    except DataError:
        raise
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not JSON",
            got=f"{error.msg} at column {error.colno}: {short_repr(text.strip())}",
            expected="one JSON value",
            remedy="repair or remove the line",
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: unreadable JSON", got=type(error).__name__, remedy="remove the line") from None
    return value

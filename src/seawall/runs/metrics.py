"""Metrics as lines of JSON; a reader passes over a last line that was cut off."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from seawall.errors import ArtifactError
from seawall.runs.files import write_text


def write_metrics(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, the whole file or nothing."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; empty where there is none.

    Raises:
        ArtifactError: a line other than a last one without its line feed is no JSON object.
    """
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [_row(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} is damaged", got=str(error), expected="a JSON object") from error
    if not isinstance(row, dict):
        raise ArtifactError(f"{where} is damaged", got=f"a {type(row).__name__}", expected="a JSON object")
    return row

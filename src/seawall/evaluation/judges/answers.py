"""Every raw answer of a judge's endpoint in a JSONL file, so that a run that goes on asks nothing twice."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

from seawall.errors import ArtifactError
from seawall.evaluation.judges.endpoint import Answer

ANSWERS = "answers.jsonl"


class AnswerLog:
    """Answers by the hash of their request, in memory and, where there is a folder, on disk; threads may share it."""

    def __init__(self, folder: Path | None) -> None:
        """Continue the folder's file, or begin it with the first answer. A last line that was cut off is dropped.

        Raises:
            ArtifactError: the file cannot be read, or another line than the last is damaged.
        """
        self._path = None if folder is None else folder / ANSWERS
        self._lock = threading.Lock()
        self._answers = {} if self._path is None else _read(self._path)

    def get(self, key: str) -> Answer | None:
        """The answer to a request, if there is one."""
        return self._answers.get(key)

    def add(self, key: str, answer: Answer) -> None:
        """Keep an answer; it is on disk when this returns."""
        line = json.dumps({"request": key, "answer": answer.text, "problem": answer.problem}) + "\n"
        with self._lock:
            self._answers[key] = answer
            if self._path is None:
                return
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as handle:
                handle.write(line.encode("ascii"))
                handle.flush()
                os.fsync(handle.fileno())


def _read(path: Path) -> dict[str, Answer]:
    if not path.exists():
        return {}
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read", got=error.strerror) from None
    whole, _, torn = content.rpartition(b"\n")
    if torn:
        os.truncate(path, len(content) - len(torn))
    lines = whole.split(b"\n") if whole else []
    return dict(_line(raw, f"{path}:{number}") for number, raw in enumerate(lines, start=1))


def _line(raw: bytes, where: str) -> tuple[str, Answer]:
    try:
        fields = json.loads(raw)
        key, text, problem = (fields[name] for name in ("request", "answer", "problem"))
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(where, f"{type(error).__name__}: {error}") from None
    if not (isinstance(key, str) and isinstance(text, str | None) and isinstance(problem, str | None)):
        raise _damaged(where, repr(raw[:60]))
    return key, Answer(text, problem)


def _damaged(where: str, got: str) -> ArtifactError:
    return ArtifactError(
        f"{where}: a damaged answer of the judge", got=got, remedy="delete the line; only that reply is asked again"
    )

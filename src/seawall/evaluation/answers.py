"""Every raw answer of an endpoint in a JSONL file, so that a run that goes on asks nothing twice."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from seawall.errors import ArtifactError
from seawall.evaluation.endpoint import Answer, Endpoint

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
        line = json.dumps(_fields(key, answer)) + "\n"
        with self._lock:
            self._answers[key] = answer
            if self._path is None:
                return
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as handle:
                handle.write(line.encode("ascii"))
                handle.flush()
                os.fsync(handle.fileno())


def request_answers(endpoint: Endpoint, bodies: Mapping[str, dict[str, Any]], log: AnswerLog) -> dict[str, Answer]:
    """An answer to every request, by its key; only what the log lacks is sent, several at once.

    Args:
        endpoint: whom to ask.
        bodies: requests by a key that identifies them.
        log: where final answers are looked up and kept.

    Raises:
        ConfigError: the endpoint says that the key, the address or the model is wrong.
    """
    found = {key: kept for key in bodies if (kept := log.get(key)) is not None}
    missing = [key for key in bodies if key not in found]
    if not missing:
        return found
    stop = threading.Event()
    with endpoint.connect() as client:

        def one(key: str) -> Answer:
            if stop.is_set():
                return Answer(None, "stopped", final=False)
            answer = endpoint.request(client, bodies[key], stop)
            if answer.final:
                log.add(key, answer)
            return answer

        executor = ThreadPoolExecutor(endpoint.concurrency)
        try:
            return found | dict(zip(missing, executor.map(one, missing), strict=True))
        finally:  # also when an answer shows that a setting is wrong, or the user interrupts
            stop.set()
            executor.shutdown(cancel_futures=True)


def _fields(key: str, answer: Answer) -> dict[str, Any]:
    """A line of the file; what the endpoint did not say is left out."""
    pieces = None if answer.pieces is None else [piece.hex() for piece in answer.pieces]
    said = {"finish": answer.finish, "tokens": answer.tokens, "pieces": pieces}
    return {
        "request": key,
        "answer": answer.text,
        "problem": answer.problem,
        **{name: value for name, value in said.items() if value is not None},
    }


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
        finish, tokens, hexes = (fields.get(name) for name in ("finish", "tokens", "pieces"))
        pieces = None if hexes is None else tuple(map(bytes.fromhex, hexes))
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(where, f"{type(error).__name__}: {error}") from None
    texts = all(isinstance(value, str | None) for value in (text, problem, finish))
    if not (isinstance(key, str) and texts and isinstance(tokens, int | None)):
        raise _damaged(where, repr(raw[:60]))
    return key, Answer(text, problem, finish=finish, tokens=tokens, pieces=pieces)


def _damaged(where: str, got: str) -> ArtifactError:
    return ArtifactError(
        f"{where}: a damaged answer of an endpoint", got=got, remedy="delete the line; only that one is asked again"
    )

"""Saves every raw answer of an endpoint in a JSONL file, so that a resumed run sends no request twice."""

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
    """Answers by the hash of their request, in memory and (with a folder) on disk. Thread-safe."""

    def __init__(self, folder: Path | None) -> None:
        """Opens the folder's file; an incomplete last line is removed. The first answer creates a missing file.

        Raises:
            ArtifactError: the file cannot be read, or a line other than the last is damaged.
        """
        self._path = None if folder is None else folder / ANSWERS
        self._lock = threading.Lock()
        self._answers = {} if self._path is None else _read(self._path)

    def get(self, key: str) -> Answer | None:
        """The saved answer to a request, if any."""
        return self._answers.get(key)

    def add(self, key: str, answer: Answer) -> None:
        """Saves an answer; it is on disk on return."""
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
    """The answer to every request, by its key. Requests with a saved answer are not sent; the others run concurrently.

    Args:
        endpoint: the endpoint.
        bodies: requests by a key that identifies them.
        log: finds and saves final answers.

    Raises:
        ConfigError: the endpoint rejects the key, the address or the model.
    """
    answers = {key: saved for key in bodies if (saved := log.get(key)) is not None}
    missing = [key for key in bodies if key not in answers]
    if not missing:
        return answers
    stop = threading.Event()
    with endpoint.connect() as client:

        def send(key: str) -> Answer:
            if stop.is_set():
                return Answer(None, "stopped", final=False)
            answer = endpoint.request(client, bodies[key], stop)
            if answer.final:
                log.add(key, answer)
            return answer

        executor = ThreadPoolExecutor(endpoint.concurrency)
        try:
            return answers | dict(zip(missing, executor.map(send, missing), strict=True))
        finally:  # also where an answer shows a wrong setting, or the user interrupts
            stop.set()
            executor.shutdown(cancel_futures=True)


def _fields(key: str, answer: Answer) -> dict[str, Any]:
    """A line of the file; values that the endpoint did not return are left out."""
    pieces = None if answer.pieces is None else [piece.hex() for piece in answer.pieces]
    optional = {"finish": answer.finish, "tokens": answer.tokens, "pieces": pieces}
    return {
        "request": key,
        "answer": answer.text,
        "problem": answer.problem,
        **{name: value for name, value in optional.items() if value is not None},
        **{name: value for name in ("thought", "unscored") if (value := getattr(answer, name))},
    }


def _read(path: Path) -> dict[str, Answer]:
    if not path.exists():
        return {}
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read", got=error.strerror) from None
    complete, _, torn = content.rpartition(b"\n")
    if torn:
        os.truncate(path, len(content) - len(torn))
    lines = complete.split(b"\n") if complete else []
    return dict(_line(raw, f"{path}:{number}") for number, raw in enumerate(lines, start=1))


def _line(raw: bytes, where: str) -> tuple[str, Answer]:
    try:
        fields = json.loads(raw)
        key, text, problem = (fields[name] for name in ("request", "answer", "problem"))
        finish, tokens, hexes = (fields.get(name) for name in ("finish", "tokens", "pieces"))
        pieces = None if hexes is None else tuple(map(bytes.fromhex, hexes))
        thought, unscored = (fields.get(name, "") for name in ("thought", "unscored"))
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(where, f"{type(error).__name__}: {error}") from None
    texts = all(isinstance(value, str | None) for value in (text, problem, finish))
    texts = texts and isinstance(thought, str) and isinstance(unscored, str)
    if not (isinstance(key, str) and texts and isinstance(tokens, int | None)):
        raise _damaged(where, repr(raw[:60]))
    return key, Answer(text, problem, finish=finish, tokens=tokens, pieces=pieces, thought=thought, unscored=unscored)


def _damaged(where: str, got: str) -> ArtifactError:
    return ArtifactError(
        f"{where}: the saved answer is damaged", got=got, remedy="delete the line; its request is then sent again"
    )

"""Writes files atomically, and turns failures of the disk into one-line errors."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from seawall.disk import follow_umask, regular
from seawall.errors import ArtifactError, RunFolderError

_FREE = "free some space and run the same command again: finished work is kept"
_ELSEWHERE = "choose another folder with --output"
_REASONS = {
    errno.ENOSPC: ("the disk is full", _FREE),
    errno.EDQUOT: ("the disk quota is used up", _FREE),
    errno.EFBIG: (
        "a file would grow past the allowed size",
        "raise the limit (ulimit -f) and run the same command again",
    ),
    errno.EACCES: ("permission denied", f"{_ELSEWHERE} that you may write to, or change the permissions"),
    errno.EPERM: ("operation not permitted", f"{_ELSEWHERE} that you may write to"),
    errno.EROFS: ("the file system is read-only", _ELSEWHERE),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", _ELSEWHERE),
    errno.ENAMETOOLONG: ("the path is too long", _ELSEWHERE),
    errno.EIO: ("the disk reports an input/output error", "check the disk, then run the same command again"),
}
_WORKERS = 4
_TORCH_WRITER = ("inline_container", "PytorchStreamWriter")
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turns failures of the disk into one-line errors; other errors pass unchanged.

    Raises:
        RunFolderError: the disk is full, read-only, not accessible or broken.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REASONS:
            raise
        raise _unusable(error.filename or folder, error.errno) from error
    except SafetensorError as error:  # safetensors wraps errors of the operating system too
        code_match = _OS_ERROR.search(str(error))
        if code_match is None or int(code_match[1]) not in _REASONS:
            raise
        raise _unusable(folder, int(code_match[1])) from error
    except RuntimeError as error:  # torch.save names no cause
        if not any(part in str(error) for part in _TORCH_WRITER):
            raise
        raise RunFolderError(
            f"cannot use {folder}: a file was not written completely, as on a full disk", remedy=_FREE
        ) from error


def _unusable(path: object, code: int) -> RunFolderError:
    reason, remedy = _REASONS[code]
    return RunFolderError(f"cannot use {path}: {reason}", remedy=remedy)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically: readers see the old content or the new, even after a power cut."""
    scratch = path.with_name(f".{path.name}.part")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
    publish(scratch, path)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """`write_text` of a JSON object."""
    write_text(path, json.dumps(document, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ArtifactError: the file is missing, cannot be read, or holds no JSON object.
    """
    try:
        document = json.loads(regular(path).read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing", remedy="run the stage that writes this file") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read", got=error.strerror, expected="a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(document, dict):
        raise _damaged(path, f"a {type(document).__name__}")
    return document


def _damaged(path: Path, got: str) -> ArtifactError:
    return ArtifactError(f"{path} is damaged", got=got, expected="a JSON object", remedy="restore the file from a copy")


def canonical_hash(document: Mapping[str, Any]) -> str:
    """sha256 of a JSON object, independent of the order of its keys."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def file_hash(path: Path) -> str:
    """sha256 of a file."""
    with regular(path).open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def hash_files(paths: Iterable[Path]) -> dict[Path, str]:
    """`file_hash` of every file, several at once."""
    files = list(paths)
    with ThreadPoolExecutor(_WORKERS) as pool:
        return dict(zip(files, pool.map(file_hash, files), strict=True))


def publish(scratch: Path, path: Path) -> None:
    """Renames a finished file or folder to `path`, and waits until the new name is on disk."""
    scratch.replace(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Waits until everything in a folder is on disk; its files get the permissions of any new file."""
    for path in [*sorted(folder.rglob("*")), folder]:
        if path.is_file() and not path.is_symlink():
            follow_umask(path)
        flush(path)


def write_metrics(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object per line, atomically."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; empty where there is no file. An incomplete last line is ignored.

    Raises:
        ArtifactError: a line is no JSON object.
    """
    if not path.is_file():
        return []
    lines = regular(path).read_bytes().split(b"\n")[:-1]
    return [_row(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} is damaged", got=str(error), expected="a JSON object") from error
    if not isinstance(row, dict):
        raise ArtifactError(f"{where} is damaged", got=f"a {type(row).__name__}", expected="a JSON object")
    return row

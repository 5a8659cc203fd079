"""The lock of a folder, also on file systems without file locks."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from seawall.errors import RunFolderError

LOCK, OWNER = ".lock", ".lock-owner"
"""The locked file; and, on a file system without file locks, the file whose existence is the lock."""
_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS})


_held: set[Path] = set()
"""Files of owners that this process has created."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock.

    On a file system without file locks, a file with the host and the process is created instead. It is removed at the
    end; a process that was killed leaves it behind, and the next one on the same host replaces it. What a killed
    process on another host left behind, a person removes.

    Raises:
        RunFolderError: another process holds the lock.
    """
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        if _acquire(file, folder):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield
            return
    with _owned(folder):
        yield


def _acquire(file: TextIO, folder: Path) -> bool:
    """Whether the file is locked; False where the file system has no file locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise RunFolderError(
            f"another process works in {folder}",
            got=f"process {file.read().strip() or 'unknown'}",
            remedy="wait until the process ends, or choose another folder with --output",
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Holds the folder by a file that only one process can create."""
    path = folder / OWNER
    if path.is_file() and path.resolve() not in _held and _is_over(path.read_text("utf-8")):
        path.unlink(missing_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(f"{platform.node()} {os.getpid()}\n")
    except FileExistsError as error:
        host, _, process = path.read_text("utf-8").strip().rpartition(" ")
        raise RunFolderError(
            f"another process works in {folder}, on a file system without file locks",
            got=f"process {process or 'unknown'} on {host or 'an unknown host'}",
            remedy=f"wait until the process ends; if it was killed, remove {path}",
        ) from error
    _held.add(path.resolve())
    try:
        yield
    finally:
        _held.discard(path.resolve())
        path.unlink(missing_ok=True)


def _is_over(owner: str) -> bool:
    """Whether the process that wrote its host and number ran on this host and has ended.

    A container gives its processes the same numbers again, so a file with this process's own number is left over.
    """
    host, _, process = owner.strip().rpartition(" ")
    if host != platform.node() or not process.isdigit():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return int(process) == os.getpid()

"""One process at a time works in a run folder.

The lock is the kernel's (`flock`), not a file with a process id: it is given back when its process ends, however that
happens, so it can never be left behind. The id in the file only serves the message.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from seawall.errors import RunFolderError

LOCK = ".lock"
_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock.

    Raises:
        RunFolderError: another process holds it, or the file system has no locks.
    """
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        _acquire(file, folder)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _acquire(file: TextIO, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise RunFolderError(
            f"another process works in {folder}",
            got=f"process {file.read().strip() or 'unknown'}",
            remedy="wait for it, or choose another folder with --output",
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise RunFolderError(
            f"the file system of {folder} has no file locks",
            got=error.strerror,
            remedy="choose a folder on another disk with --output",
        ) from error

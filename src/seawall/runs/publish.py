"""Publishes finished folders and files atomically."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from seawall.errors import RunFolderError
from seawall.runs.files import flush_tree, publish
from seawall.runs.lock import LOCK, OWNER, locked

_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)
"""Errors of a rename onto a folder that has content by now."""


def require_free(output: Path) -> None:
    """Checks that a folder can be created: it is new or empty, and not the current directory.

    Raises:
        RunFolderError: the folder is not empty, its path leads through a file, or it is the current directory.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunFolderError(
            f"{output} already exists", expected="a new or empty folder", remedy="choose another folder with -o"
        )
    file = next((parent for parent in output.parents if parent.exists() and not parent.is_dir()), None)
    if file is not None:
        raise RunFolderError(f"{output} cannot be created: {file} is a file", remedy="choose another folder with -o")
    if output.exists() and output.samefile(Path.cwd()):
        raise RunFolderError(f"{output} is the current directory", remedy="name a new folder in it with -o")


@contextmanager
def published(output: Path) -> Iterator[Path]:
    """Yields a scratch folder beside the output, which is renamed to the output at the end, or removed on an error.

    The scratch folder lies in `.NAME.part`, which is locked. A killed process leaves this folder behind, and the next
    with the same output clears it.

    Raises:
        RunFolderError: another process writes the same output, or has written it meanwhile.
    """
    with ExitStack() as stack:
        scratch = _scratch(output, stack)
        yield scratch
        flush_tree(scratch)
        try:
            publish(scratch, output)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            raise _written_meanwhile(output) from error


def _scratch(output: Path, stack: ExitStack) -> Path:
    """A scratch folder in the output's locked holder, which the stack removes."""
    holder = output.with_name(f".{output.name}.part")
    try:
        holder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked(holder))
        stack.callback(shutil.rmtree, holder, ignore_errors=True)
        return _empty(holder)
    except FileNotFoundError as error:  # the other process has ended and removed the holder
        raise _written_meanwhile(output) from error


def _written_meanwhile(output: Path) -> RunFolderError:
    return RunFolderError(
        f"another process writes {output} at the same time", remedy="choose another folder with -o, or wait for it"
    )


def _empty(holder: Path) -> Path:
    for path in holder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (LOCK, OWNER):
            path.unlink()
    scratch = holder / "work"
    scratch.mkdir()
    return scratch


def copy_file(source: Path, target: Path) -> None:
    """Copies a file atomically: readers see the old content or the new."""
    scratch = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, scratch)
    scratch.replace(target)

"""Publishes finished folders and files atomically."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seawall.errors import RunFolderError
from seawall.runs.files import flush_tree, publish


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
    """Yields a scratch folder beside the output, which is renamed to the output at the end, or removed on an error."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
        scratch = Path(temporary) / "work"
        scratch.mkdir()
        yield scratch
        flush_tree(scratch)
        publish(scratch, output)


def copy_file(source: Path, target: Path) -> None:
    """Copies a file atomically: readers see the old content or the new."""
    scratch = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, scratch)
    scratch.replace(target)

"""Putting a finished folder or file in its place."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seawall.errors import RunFolderError
from seawall.runs.files import flush_tree, publish


def require_free(output: Path) -> None:
    """Refuses a folder that already holds something, or that nothing can be put in the place of.

    Raises:
        RunFolderError: it does, it would lie in a file, or it is the folder that the process is in.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunFolderError(
            f"{output} already exists", expected="a new or empty folder", remedy="choose another with -o"
        )
    file = next((parent for parent in output.parents if parent.exists() and not parent.is_dir()), None)
    if file is not None:
        raise RunFolderError(f"{output} cannot be made: {file} is a file", remedy="choose another folder with -o")
    if output.exists() and output.samefile(Path.cwd()):
        raise RunFolderError(f"{output} is the folder that you are in", remedy="name a new folder in it with -o")


@contextmanager
def published(output: Path) -> Iterator[Path]:
    """A folder beside the output that takes its place at the end, or is removed."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
        scratch = Path(temporary) / "work"
        scratch.mkdir()
        yield scratch
        flush_tree(scratch)
        publish(scratch, output)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file so that a reader sees the old content or the new, never a part."""
    scratch = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, scratch)
    scratch.replace(target)

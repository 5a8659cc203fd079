"""Untrusted paths and file permissions: devices are refused, links stay in their folder, files follow the umask."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_FILE_MODE = 0o666
_HUB_BLOBS = "blobs"
"""The folder beside `snapshots` in the Hub's cache, to which its files are links."""


def cache_folder() -> Path:
    """The folder for downloaded and built files: `$SEAWALL_CACHE`, else seawall's folder in the user's cache."""
    named = os.environ.get("SEAWALL_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "seawall"


def regular(path: Path) -> Path:
    """The path, checked to be a regular file: a device or a pipe can be read for ever.

    Raises:
        OSError: no such file, or the path is a folder, a device, a pipe or a socket; `strerror` says so.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a device, a pipe or a socket", str(path))
    return path


def leads_out(path: Path) -> bool:
    """Whether a link leads out of its folder, except from a snapshot of the Hub's cache to the cache's own files."""
    folder, target = path.parent.resolve(), path.resolve()
    allowed = [folder]
    if folder.parent.name == "snapshots":
        allowed.append(folder.parent.parent / _HUB_BLOBS)
    return not any(target.is_relative_to(place) for place in allowed)


def follow_umask(path: Path) -> None:
    """Gives a file the permissions of any new file; libraries write some files for their owner alone."""
    mask = os.umask(0o077)
    os.umask(mask)
    path.chmod(_FILE_MODE & ~mask)


def what_lacks(folder: Path, name: str) -> str:
    """What stands in place of a folder with a file of that name, for an error: no such file in it, a file, nothing."""
    if folder.is_dir():
        return f"no {name} in it"
    return "a file" if folder.exists() else "no such folder"

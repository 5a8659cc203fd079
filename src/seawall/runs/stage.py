"""Running a stage once: skip it when it is done, go on when it was interrupted, publish it whole."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seawall.errors import ArtifactError
from seawall.runs.files import (
    canonical_hash,
    file_hash,
    flush,
    flush_tree,
    publish,
    read_json,
    storage_errors,
    write_json,
)
from seawall.runs.folder import MARKER, RunFolder, update_manifest

_STARTED = "STARTED"


@dataclass(frozen=True)
class Done:
    """What the marker of a finished stage says.

    Attributes:
        fingerprint: hash of everything the result depends on.
        files: hash of every file of the stage, by its path in the stage's folder.
        times: `started`, `ended` (UTC) and `seconds` of the attempt that finished it.
        removed: hash of every file that was removed on purpose since, by its path.
    """

    fingerprint: str
    files: dict[str, str]
    times: dict[str, Any]
    removed: dict[str, str] = field(default_factory=dict)


def run_stage(run: RunFolder, name: str, fingerprint: Mapping[str, Any], work: Callable[[Path], None]) -> Path:
    """The folder of the finished stage `name`.

    The work happens in `NAME.partial/`, which an interruption leaves and the same fingerprint resumes. The marker
    `DONE`, which holds the hash of every file, is written when all of them are on the disk; then one rename publishes
    the folder. The manifest says `running` until then, also of an attempt that was ended. A finished stage with the
    same fingerprint is skipped; one with another is set aside as `NAME.old-N`.

    Args:
        run: the run folder.
        name: the stage.
        fingerprint: everything the result depends on, as JSON.
        work: does the work in the folder it is given, which may hold what an interrupted attempt left.

    Raises:
        ArtifactError: the finished stage was changed since.
        RunFolderError: the disk is full, read-only or forbidden; what is finished stays.
    """
    key = canonical_hash(fingerprint)
    target, scratch = run.stage(name), run.stage(f"{name}.partial")
    with storage_errors(run.path):
        marker = _done(target)
        if marker is not None and marker.fingerprint == key:
            _require_unchanged(target, _held(target, marker))
        else:
            marker = _finished(scratch, key) or _attempt(run, name, fingerprint, work)
            if target.exists():
                publish(target, _free_name(target))
            publish(scratch, target)
        update_manifest(run, {"stages": {name: {"state": "done", **marker.times}}})
    return target


def is_done(run: RunFolder, name: str) -> bool:
    """Whether the stage is finished (for whatever fingerprint)."""
    return (run.stage(name) / MARKER).is_file()


def is_current(run: RunFolder, name: str, fingerprint: Mapping[str, Any]) -> bool:
    """Whether the stage is finished for this fingerprint, so that `run_stage` would skip it."""
    marker = _done(run.stage(name))
    return marker is not None and marker.fingerprint == canonical_hash(fingerprint)


def finished_stage(run: RunFolder, name: str) -> Path:
    """The folder of a finished stage, every file as the stage left it.

    Raises:
        ArtifactError: the stage is not finished, or a file was changed since.
    """
    folder = run.stage(name)
    _require_unchanged(folder, _held(folder, _finished_marker(run, name)))
    return folder


def stage_hash(run: RunFolder, name: str) -> str:
    """What a later stage depends on: the hashes of all files of a finished stage, of those that were removed too.

    Raises:
        ArtifactError: the stage is not finished, or its marker is damaged.
    """
    marker = _finished_marker(run, name)
    return canonical_hash({**marker.files, **marker.removed})


def remove_from_stage(run: RunFolder, name: str, path: str) -> None:
    """Remove a file of a finished stage that is not to be kept; the stage stays finished, and what depends on it too.

    The marker is written first and keeps the hash of what was removed; an interruption leaves the file for the next
    call.

    Args:
        run: the run folder.
        name: the stage.
        path: of the file, in the stage's folder; nothing happens where it was removed before.

    Raises:
        ArtifactError: the stage is not finished, or its marker is damaged.
    """
    done = _finished_marker(run, name)
    folder = run.stage(name)
    if path in done.files:
        files = {other: value for other, value in done.files.items() if other != path}
        marker = read_json(folder / MARKER)
        write_json(folder / MARKER, {**marker, "files": files, "removed": {**done.removed, path: done.files[path]}})
    (folder / path).unlink(missing_ok=True)


def clear_scratch(scratch: Path) -> None:
    """Remove what an interrupted attempt left in a stage's scratch folder, for work that can only begin anew."""
    for path in scratch.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _STARTED:
            path.unlink()


def _finished_marker(run: RunFolder, name: str) -> Done:
    marker = _done(run.stage(name))
    if marker is None:
        raise ArtifactError(f"the stage {name} in {run.path} is not finished", remedy=f"run `seawall {name}` first")
    return marker


def _attempt(run: RunFolder, name: str, fingerprint: Mapping[str, Any], work: Callable[[Path], None]) -> Done:
    """The work, in a folder that holds what an earlier attempt at the same left; then the marker."""
    scratch, key, begun = run.stage(f"{name}.partial"), canonical_hash(fingerprint), time.time()
    _open_scratch(scratch, key)
    # Every field is given, so that none of an earlier, finished attempt is left beside the new state.
    running = {"state": "running", "started": _clock(begun), "ended": None, "seconds": None}
    update_manifest(run, {"stages": {name: running}})
    work(scratch)
    flush_tree(scratch)
    own = {scratch / _STARTED, scratch / MARKER}
    paths = [path for path in sorted(scratch.rglob("*")) if path.is_file() and path not in own]
    files = {path.relative_to(scratch).as_posix(): file_hash(path) for path in paths}
    ended = time.time()
    times = {"started": _clock(begun), "ended": _clock(ended), "seconds": round(ended - begun, 2)}
    write_json(scratch / MARKER, {"fingerprint": key, "inputs": fingerprint, "files": files, **times})
    (scratch / _STARTED).unlink()
    flush(scratch)
    return Done(key, files, times)


def _done(folder: Path) -> Done | None:
    """The folder's marker; None where there is none.

    Raises:
        ArtifactError: the marker is damaged.
    """
    path = folder / MARKER
    if not path.is_file():
        return None
    document = read_json(path)
    key, files, removed = document.get("fingerprint"), document.get("files"), document.get("removed", {})
    if not (isinstance(key, str) and isinstance(files, dict) and isinstance(removed, dict)):
        raise ArtifactError(
            f"{path} is damaged",
            got="no fingerprint or no list of files",
            remedy=f"restore it from a copy, or remove the folder {folder} to run the stage again",
        )
    times = {name: document.get(name) for name in ("started", "ended", "seconds")}
    return Done(key, files, times, removed)


def _finished(scratch: Path, key: str) -> Done | None:
    """The marker of an attempt that ended between writing it and publishing."""
    if (scratch / _STARTED).exists():
        return None
    marker = _done(scratch)
    if marker is None or marker.fingerprint != key:
        return None
    _require_unchanged(scratch, marker.files)
    return marker


def _open_scratch(scratch: Path, key: str) -> None:
    """Make the scratch folder, or go on in it; one that belongs to other work is set aside."""
    marker = scratch / _STARTED
    if scratch.exists() and (not marker.is_file() or read_json(marker).get("fingerprint") != key):
        publish(scratch, _free_name(scratch))
    scratch.mkdir(parents=True, exist_ok=True)
    write_json(marker, {"fingerprint": key})


def _held(folder: Path, marker: Done) -> dict[str, str]:
    """The files of a stage with their hashes, with those that were removed and are there: by an interruption, or put
    back.
    """
    return {**marker.files, **{name: digest for name, digest in marker.removed.items() if (folder / name).is_file()}}


def _require_unchanged(folder: Path, files: Mapping[str, str]) -> None:
    for name, expected_hash in files.items():
        path = folder / name
        actual_hash = file_hash(path) if path.is_file() else "no file"
        if actual_hash != expected_hash:
            raise ArtifactError(
                f"{path} was changed or damaged after the stage was done",
                got=actual_hash[:23],
                expected=str(expected_hash)[:23],
                remedy=f"restore it from a copy, or remove the folder {folder} to run the stage again",
            )


def _free_name(path: Path) -> Path:
    number = 1
    while (candidate := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    return candidate


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))

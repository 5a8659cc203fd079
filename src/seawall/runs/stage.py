"""Runs a stage once: skips it when finished, resumes it after an interruption, publishes it atomically."""

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
    flush,
    flush_tree,
    hash_files,
    publish,
    read_json,
    storage_errors,
    write_json,
)
from seawall.runs.folder import LATER_SETTINGS, MARKER, RunFolder, update_manifest

_STARTED = "STARTED"
_LATER_INPUTS = ("rendered", "settings", "computing", "judge_state", "difference")
"""Inputs that finished stages of earlier versions lack; such a stage is current where all its inputs agree."""


@dataclass(frozen=True)
class StageMarker:
    """The marker of a finished stage.

    Attributes:
        fingerprint: hash of everything that the result depends on.
        files: path in the stage's folder -> hash of the file.
        times: `started`, `ended` (UTC) and `seconds` of the finishing attempt.
        removed: path -> hash of every file that was removed on purpose afterwards.
    """

    fingerprint: str
    files: dict[str, str]
    times: dict[str, Any]
    removed: dict[str, str] = field(default_factory=dict)


Work = Callable[[Path], Mapping[str, str] | None]
"""Does the work of a stage in a folder; may return hashes of files that it knows, by their path in the folder."""


def run_stage(
    run: RunFolder,
    name: str,
    fingerprint: Mapping[str, Any],
    work: Work,
    *,
    formerly: Mapping[str, Any] | None = None,
    skipped: Callable[[str], None] | None = None,
) -> Path:
    """Runs the stage `name`, unless it is finished, and returns its folder.

    The work happens in `NAME.partial/`, which survives an interruption and is resumed by the same fingerprint. The
    marker `DONE`, with the hash of every file, is written once all files are on disk; then a single rename publishes
    the folder. Until then the manifest says `running`, after a killed attempt too. A finished stage with the same
    fingerprint is skipped; one with another fingerprint is renamed to `NAME.old-N`.

    Args:
        run: the run folder.
        name: the stage.
        fingerprint: everything that the result depends on, as JSON.
        work: does the work in the given folder, which may hold files of an interrupted attempt; files whose hash it
            returns are not read again.
        formerly: parts of the fingerprint as earlier versions wrote them; a stage with these is current too.
        skipped: called with a line for the user where the stage is finished.

    Raises:
        ArtifactError: files of the finished stage have changed.
        RunFolderError: the disk is full or not writable; finished work is kept.
    """
    key, *former = _current_keys(fingerprint) + (_current_keys({**fingerprint, **formerly}) if formerly else ())
    target, scratch = run.stage(name), run.stage(f"{name}.partial")
    with storage_errors(run.path):
        marker = _read_marker(target)
        if marker is not None and marker.fingerprint in (key, *former):
            _require_unchanged(target, _present_files(target, marker))
            if skipped is not None:
                skipped(f"{name}: done, skipped")
        else:
            marker = _unpublished_marker(scratch, key) or _attempt(run, name, fingerprint, work)
            if target.exists():
                publish(target, _free_name(target))
            publish(scratch, target)
        update_manifest(run, {"stages": {name: {"state": "done", **marker.times}}})
    return target


def _current_keys(fingerprint: Mapping[str, Any]) -> tuple[str, str]:
    """The fingerprint's hash, and its hash in earlier versions."""
    earlier = {name: _earlier(value) for name, value in fingerprint.items() if name not in _LATER_INPUTS}
    return canonical_hash(fingerprint), canonical_hash(earlier)


def _earlier(value: Any) -> Any:
    """The value without settings that earlier versions lack."""
    if isinstance(value, Mapping):
        return {
            name: _earlier(item)
            for name, item in value.items()
            if name not in LATER_SETTINGS or item != LATER_SETTINGS[name]
        }
    return value


def is_done(run: RunFolder, name: str) -> bool:
    """Whether the stage is finished, for any fingerprint."""
    return (run.stage(name) / MARKER).is_file()


def is_current(run: RunFolder, name: str, fingerprint: Mapping[str, Any]) -> bool:
    """Whether the stage is finished for this fingerprint, so that `run_stage` would skip it."""
    marker = _read_marker(run.stage(name))
    return marker is not None and marker.fingerprint in _current_keys(fingerprint)


def finished_stage(run: RunFolder, name: str) -> Path:
    """The folder of a finished stage, with all files checked against their hashes.

    Raises:
        ArtifactError: the stage is not finished, or a file has changed.
    """
    folder = run.stage(name)
    _require_unchanged(folder, _present_files(folder, _finished_marker(run, name)))
    return folder


def unlisted_files(run: RunFolder, name: str) -> list[str]:
    """Paths of files in a finished stage's folder that the stage did not write, sorted.

    Raises:
        ArtifactError: the stage is not finished, or its marker is damaged.
    """
    marker, folder = _finished_marker(run, name), run.stage(name)
    paths = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    return sorted(paths - {MARKER} - marker.files.keys() - marker.removed.keys())


def stage_hash(run: RunFolder, name: str) -> str:
    """The hash of a finished stage's files, removed ones included: the part of it that later stages depend on.

    Raises:
        ArtifactError: the stage is not finished, or its marker is damaged.
    """
    marker = _finished_marker(run, name)
    return canonical_hash({**marker.files, **marker.removed})


def remove_from_stage(run: RunFolder, name: str, path: str) -> None:
    """Removes a file of a finished stage on purpose; the stage, and stages that depend on it, stay finished.

    The marker is written first and keeps the file's hash; after an interruption the next call removes the file.

    Args:
        run: the run folder.
        name: the stage.
        path: path of the file in the stage's folder; may have been removed already.

    Raises:
        ArtifactError: the stage is not finished, or its marker is damaged.
    """
    marker = _finished_marker(run, name)
    folder = run.stage(name)
    if path in marker.files:
        remaining = {name: digest for name, digest in marker.files.items() if name != path}
        removed = {**marker.removed, path: marker.files[path]}
        document = read_json(folder / MARKER)
        write_json(folder / MARKER, {**document, "files": remaining, "removed": removed})
    (folder / path).unlink(missing_ok=True)


def clear_scratch(scratch: Path) -> None:
    """Empties a stage's scratch folder of an interrupted attempt, for work that cannot be resumed."""
    for path in scratch.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _STARTED:
            path.unlink()


def _finished_marker(run: RunFolder, name: str) -> StageMarker:
    marker = _read_marker(run.stage(name))
    if marker is None:
        raise ArtifactError(f"the stage {name} in {run.path} is not finished", remedy=f"run `seawall {name}` first")
    return marker


def _attempt(run: RunFolder, name: str, fingerprint: Mapping[str, Any], work: Work) -> StageMarker:
    """Does the work in the scratch folder, which may hold files of an interrupted attempt, and writes the marker."""
    scratch, key, begun = run.stage(f"{name}.partial"), canonical_hash(fingerprint), time.time()
    _open_scratch(scratch, key)
    # All fields are written, so that none of an earlier finished attempt remains.
    running = {"state": "running", "started": _clock(begun), "ended": None, "seconds": None}
    update_manifest(run, {"stages": {name: running}})
    known_hashes = work(scratch) or {}
    flush_tree(scratch)
    own = {scratch / _STARTED, scratch / MARKER}
    paths = {
        path.relative_to(scratch).as_posix(): path
        for path in sorted(scratch.rglob("*"))
        if path.is_file() and path not in own
    }
    hashes = hash_files(path for key, path in paths.items() if key not in known_hashes)
    files = {key: known_hashes[key] if key in known_hashes else hashes[path] for key, path in paths.items()}
    ended = time.time()
    times = {"started": _clock(begun), "ended": _clock(ended), "seconds": round(ended - begun, 2)}
    write_json(scratch / MARKER, {"fingerprint": key, "inputs": fingerprint, "files": files, **times})
    (scratch / _STARTED).unlink()
    flush(scratch)
    return StageMarker(key, files, times)


def _read_marker(folder: Path) -> StageMarker | None:
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
    return StageMarker(key, files, times, removed)


def _unpublished_marker(scratch: Path, key: str) -> StageMarker | None:
    """The marker of an attempt that was interrupted between writing it and publishing."""
    if (scratch / _STARTED).exists():
        return None
    marker = _read_marker(scratch)
    if marker is None or marker.fingerprint != key:
        return None
    _require_unchanged(scratch, marker.files)
    return marker


def _open_scratch(scratch: Path, key: str) -> None:
    """Creates or reuses the scratch folder; one of another fingerprint is renamed first."""
    marker = scratch / _STARTED
    if scratch.exists() and (not marker.is_file() or read_json(marker).get("fingerprint") != key):
        publish(scratch, _free_name(scratch))
    scratch.mkdir(parents=True, exist_ok=True)
    write_json(marker, {"fingerprint": key})


def _present_files(folder: Path, marker: StageMarker) -> dict[str, str]:
    """The hashes of a stage's files, and of removed files that exist again: interrupted, or restored by the user."""
    return {**marker.files, **{name: digest for name, digest in marker.removed.items() if (folder / name).is_file()}}


def _require_unchanged(folder: Path, files: Mapping[str, str]) -> None:
    hashes = hash_files(path for name in files if (path := folder / name).is_file())
    for name, expected_hash in files.items():
        path = folder / name
        actual_hash = hashes.get(path, "no file")
        if actual_hash != expected_hash:
            raise ArtifactError(
                f"{path} was changed or damaged after the stage finished",
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

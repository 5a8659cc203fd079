"""The files of a finished run that no stage covers, with their hashes in the manifest."""

from __future__ import annotations

from seawall.errors import ArtifactError
from seawall.runs.files import file_hash, read_json
from seawall.runs.folder import RunFolder, update_manifest

_KEY = "hashes"


def seal_files(run: RunFolder) -> None:
    """Writes the hashes of `summary.json` and `resolved.json` into the manifest."""
    update_manifest(run, {_KEY: {path.name: file_hash(path) for path in (run.summary, run.resolved)}})


def require_sealed(run: RunFolder) -> None:
    """Checks these files against the manifest; a run of an earlier version of seawall has no hashes and passes.

    Raises:
        ArtifactError: the manifest is missing or damaged, or a file is missing or changed.
    """
    hashes = read_json(run.manifest).get(_KEY, {})
    if not isinstance(hashes, dict):
        raise ArtifactError(f"{run.manifest} is damaged", got=f"{_KEY} that is no object")
    for path in (run.summary, run.resolved):
        if path.name in hashes and (not path.is_file() or file_hash(path) != hashes[path.name]):
            raise ArtifactError(
                f"{path} was changed or damaged after the run finished",
                remedy="restore it from a copy, or run the same recipe again with the same --output",
            )

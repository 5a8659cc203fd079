"""The folders that a finished run hands over, `delta/` and `model/`, checked against the evaluated weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from seawall.artifacts.delta import DeltaOutline
from seawall.errors import ArtifactError, SeawallError, UnsupportedModelError
from seawall.models.files.rewrite import checkpoint_fingerprint
from seawall.models.files.stream import outline
from seawall.runs.folder import RunFolder
from seawall.runs.stage import finished_stage, is_done, unlisted_files
from seawall.shell.finished import FinishedRun

_SETTINGS = {"delta": "delta", "model": "checkpoint"}
"""Folder -> its setting in the recipe's section `export`."""
_REMEDY = "restore the folder from a copy, or remove it and run `seawall run` with the same recipe and --output"


@dataclass(frozen=True, slots=True)
class Export:
    """A folder that a run hands over.

    Attributes:
        name: `delta` or `model`.
        problem: why its content is not the evaluated repair; None where it is.
    """

    name: str
    problem: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the folder holds the evaluated repair."""
        return self.problem is None


def check_exports(finished: FinishedRun) -> tuple[Export, ...]:
    """A result for every folder that the recipe exports, and for a folder of an earlier export.

    A folder passes where its files have the hashes of their stage, no file was added, and its weights have the
    fingerprint of the evaluated model.
    """
    settings = finished.recipe.get("export", {})
    names = [name for name, key in _SETTINGS.items() if settings.get(key, False) or finished.run.stage(name).is_dir()]
    return tuple(Export(name, _problem(finished, _CHECKS[name], name)) for name in names)


def _problem(finished: FinishedRun, check: Callable[[FinishedRun], None], name: str) -> str | None:
    if not is_done(finished.run, name):
        return f"no finished {name} in {finished.run.path}; {_REMEDY}"
    try:
        finished_stage(finished.run, name)
        _require_complete(finished.run, name)
        check(finished)
    except SeawallError as error:
        return str(error)
    return None


def _require_complete(run: RunFolder, name: str) -> None:
    added = unlisted_files(run, name)
    if added:
        raise ArtifactError(
            f"{run.stage(name)} holds a file that the export did not write", got=added[0], remedy="remove the file"
        )


def _check_delta(finished: FinishedRun) -> None:
    exported, repair = (
        DeltaOutline.load(folder) for folder in (finished.run.stage("delta"), finished.run.stage("repair") / "delta")
    )
    if exported != repair:
        raise ArtifactError(f"{finished.run.stage('delta')} is not the delta of this run's repair", remedy=_REMEDY)


def _check_model(finished: FinishedRun) -> None:
    folder, expected = finished.run.stage("model"), finished.after.result.model_fingerprint
    try:
        fingerprint = checkpoint_fingerprint(outline(folder))
    except UnsupportedModelError:
        return  # Python code of the checkpoint defines the layout; the hashes of the files are checked alone
    if fingerprint != expected:
        raise ArtifactError(
            f"the weights in {folder} are not the evaluated ones",
            got=f"weights {fingerprint[:23]}...",
            expected=f"weights {expected[:23]}...",
            remedy=_REMEDY,
        )


_CHECKS: Mapping[str, Callable[[FinishedRun], None]] = {"delta": _check_delta, "model": _check_model}

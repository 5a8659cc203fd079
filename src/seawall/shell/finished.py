"""A finished run, read with the hashes of its stages checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seawall.artifacts.delta import DeltaOutline
from seawall.artifacts.evaluation import EvalResult, Sample
from seawall.artifacts.store import require_model
from seawall.errors import RunFolderError
from seawall.evaluation.run import SAMPLES
from seawall.evaluation.samples import load_samples
from seawall.runs.files import read_json
from seawall.runs.folder import RunFolder
from seawall.runs.sealed import require_sealed
from seawall.runs.stage import finished_stage


@dataclass(frozen=True, eq=False)
class RunEvaluation:
    """One evaluation of a run, and its samples."""

    result: EvalResult
    samples: list[Sample]


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run with a summary.

    Attributes:
        run: its folder.
        recipe: the resolved recipe, with every default.
        summary: content of `summary.json`.
        before, after: its evaluations.
    """

    run: RunFolder
    recipe: dict[str, Any]
    summary: dict[str, Any]
    before: RunEvaluation
    after: RunEvaluation

    @property
    def resamples(self) -> int:
        """Number of resamples of the run's intervals."""
        return int(self.recipe["eval"]["bootstrap"])

    @property
    def seed(self) -> int:
        """Seed of these resamples."""
        return int(self.recipe["eval"]["seed"])


def open_finished(path: Path) -> FinishedRun:
    """The finished run in a folder.

    Raises:
        RunFolderError: no run, or an unfinished one.
        ArtifactError: a file is damaged or was changed; an evaluation is of another model than the run's.
    """
    run = RunFolder.existing(path)
    if not run.summary.is_file():
        raise RunFolderError(
            f"the run in {path} is not finished",
            got="no summary.json in it",
            remedy="finish it with `seawall run`, with the same recipe and --output",
        )
    summary = read_json(run.summary)
    if "evaluation" in summary:
        raise RunFolderError(
            f"{path} holds only an evaluation",
            expected="a run with a repair and an evaluation before and after it",
            remedy="name the folder of a `seawall run`",
        )
    require_sealed(run)
    before, after = (_evaluated(run, when) for when in ("before", "after"))
    change = DeltaOutline.load(finished_stage(run, "repair") / "delta")
    for evaluation, fingerprint in ((before, change.base_model), (after, change.result_model)):
        require_model(evaluation.result.model_fingerprint, expected=fingerprint, artifact="evaluation")
    return FinishedRun(run, read_json(run.resolved), summary, before, after)


def _evaluated(run: RunFolder, when: str) -> RunEvaluation:
    folder = finished_stage(run, f"eval-{when}")
    return RunEvaluation(EvalResult.load(folder), load_samples(folder / SAMPLES))

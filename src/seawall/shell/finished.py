"""Reading a finished run, with every file that is read as its stage left it."""

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
from seawall.runs.stage import finished_stage


@dataclass(frozen=True, eq=False)
class Evaluated:
    """One evaluation of a run and its samples."""

    result: EvalResult
    samples: list[Sample]


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run that has its summary.

    Attributes:
        run: its folder.
        recipe: what ran, every default spelled out.
        summary: the headline.
        before, after: its evaluations.
    """

    run: RunFolder
    recipe: dict[str, Any]
    summary: dict[str, Any]
    before: Evaluated
    after: Evaluated

    @property
    def resamples(self) -> int:
        """Resamples of the run's intervals."""
        return int(self.recipe["eval"]["bootstrap"])

    @property
    def seed(self) -> int:
        """Seed of these resamples."""
        return int(self.recipe["eval"]["seed"])


def open_finished(path: Path) -> FinishedRun:
    """The run in a folder.

    Raises:
        RunFolderError: it holds no run, or one that is not finished.
        ArtifactError: a file is damaged or was changed; an evaluation is of another model than the run's.
    """
    run = RunFolder.existing(path)
    if not run.summary.is_file():
        raise RunFolderError(
            f"the run in {path} is not finished",
            got="no summary.json in it",
            remedy="finish it with `seawall run`, the same recipe and the same --output",
        )
    summary = read_json(run.summary)
    if "evaluation" in summary:
        raise RunFolderError(
            f"{path} holds an evaluation alone",
            expected="a run with a repair, evaluated before and after",
            remedy="name the folder that `seawall run` left",
        )
    before, after = (_evaluated(run, when) for when in ("before", "after"))
    change = DeltaOutline.load(finished_stage(run, "repair") / "delta")
    for one, wanted in ((before, change.base_model), (after, change.result_model)):
        require_model(one.result.model_fingerprint, expected=wanted, artifact="evaluation")
    return FinishedRun(run, read_json(run.resolved), summary, before, after)


def _evaluated(run: RunFolder, when: str) -> Evaluated:
    folder = finished_stage(run, f"eval-{when}")
    return Evaluated(EvalResult.load(folder), load_samples(folder / SAMPLES))

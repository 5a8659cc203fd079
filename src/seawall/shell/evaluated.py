"""A finished evaluation: the folder of `seawall eval`, or `eval-before` or `eval-after` of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seawall.artifacts.evaluation import NAME, EvalResult, Sample
from seawall.disk import what_lacks
from seawall.errors import RunFolderError
from seawall.evaluation.run import SAMPLES
from seawall.evaluation.samples import load_samples
from seawall.report.wording import limit_of
from seawall.runs.files import read_json
from seawall.runs.folder import MARKER, RunFolder
from seawall.runs.sealed import require_sealed
from seawall.runs.stage import finished_stage, is_done

STAGE = "eval"
"""The stage of `seawall eval`."""
_TARGET = "target"
"""Key of `resolved.json` that the folder of `seawall eval` has and that of a run lacks."""


@dataclass(frozen=True, eq=False)
class FinishedEvaluation:
    """One evaluation of one model, with what it was measured with.

    Attributes:
        run: the folder of the evaluation, or of the run that holds it.
        stage: its stage there.
        recipe: the resolved sections of the recipe.
        manifest: of the folder.
        inputs: inputs of the stage, as its marker names them.
        result: its rates and losses.
        samples: every prompt, reply and verdict.
    """

    run: RunFolder
    stage: str
    recipe: dict[str, Any]
    manifest: dict[str, Any]
    inputs: dict[str, Any]
    result: EvalResult
    samples: list[Sample]

    @property
    def model(self) -> str:
        """The model's id, or its name at the endpoint; with the delta or the adapter, where there is one."""
        engine = self.recipe["eval"].get("engine", {"kind": "transformers"})
        name = str(engine["model"] if engine["kind"] == "endpoint" else self.recipe["model"]["id"])
        parts = [Path(folder).name for folder in (self.recipe.get(_TARGET) or {}).values() if folder]
        return " + ".join([name, *parts]) + (f" ({self.stage})" if self.stage != STAGE else "")

    @property
    def limit(self) -> int | None:
        """Maximum number of prompts of every group, where they are a limited sample."""
        return limit_of(self.recipe)

    @property
    def resamples(self) -> int:
        """Number of resamples of its intervals."""
        return int(self.recipe["eval"]["bootstrap"])

    @property
    def seed(self) -> int:
        """Seed of these resamples."""
        return int(self.recipe["eval"]["seed"])


def is_evaluation(path: Path) -> bool:
    """Whether a folder is that of a `seawall eval`, or a finished evaluation within a run."""
    if (path / NAME).is_file() and (path / MARKER).is_file():
        return True
    resolved = RunFolder(path).resolved
    return resolved.is_file() and _TARGET in read_json(resolved)


def open_evaluation(path: Path) -> FinishedEvaluation:
    """The finished evaluation in a folder, with the hashes of its files checked.

    Raises:
        RunFolderError: no evaluation, or an unfinished one.
        ArtifactError: a file is damaged or was changed.
    """
    if not is_evaluation(path):
        resolved = RunFolder(path).resolved
        raise RunFolderError(
            f"{path} holds no evaluation",
            got="a run" if resolved.is_file() else what_lacks(path, resolved.name),
            remedy="name a folder that `seawall eval` wrote, or RUN/eval-before or RUN/eval-after",
        )
    in_stage = (path / NAME).is_file()
    run, stage = (RunFolder.existing(path.parent), path.name) if in_stage else (RunFolder(path), STAGE)
    if not is_done(run, stage):
        raise RunFolderError(
            f"the evaluation in {path} is not finished", remedy="run the same `seawall eval` again: it resumes"
        )
    require_sealed(run)
    folder = finished_stage(run, stage)
    return FinishedEvaluation(
        run,
        stage,
        recipe=read_json(run.resolved),
        manifest=read_json(run.manifest),
        inputs=read_json(folder / MARKER).get("inputs", {}),
        result=EvalResult.load(folder),
        samples=load_samples(folder / SAMPLES),
    )

"""The evaluations of a folder: before and after of a run, or the only one of `seawall eval`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seawall.artifacts.evaluation import EvalResult, Sample
from seawall.errors import RunFolderError
from seawall.evaluation.run import SAMPLES
from seawall.evaluation.samples import load_samples
from seawall.runs.files import read_json
from seawall.runs.folder import RunFolder
from seawall.runs.stage import finished_stage, is_done
from seawall.shell.finished import open_finished

_STAGES = {"eval": "eval", "before": "eval-before", "after": "eval-after"}
"""Evaluation -> its stage; `eval` is that of `seawall eval` with a model of its own."""


@dataclass(frozen=True, eq=False)
class Evaluated:
    """One evaluation, with what its folder tells about it.

    Attributes:
        name: `before`, `after` or `eval`.
        result, samples: rates, and the judged replies behind them.
        recipe: the resolved recipe, with every default.
        manifest: versions, hashes and times.
        times: `started` and `ended` of the stage, in UTC.
    """

    name: str
    result: EvalResult
    samples: tuple[Sample, ...]
    recipe: Mapping[str, Any]
    manifest: Mapping[str, Any]
    times: Mapping[str, Any]

    @property
    def model(self) -> str:
        """The model's id, or its name at an endpoint."""
        return str(self.manifest.get("model", {}).get("id") or self.recipe["model"]["id"])

    @property
    def task(self) -> str:
        """The recipe's name and the evaluation's."""
        return f"{self.recipe['name']}-{self.name}"


def read_evaluations(path: Path) -> tuple[Evaluated, ...]:
    """The evaluations of a run, before and after its repair, or of a folder of `seawall eval`.

    A run that is not finished has the evaluations that are.

    Raises:
        RunFolderError: no run folder, or none with a finished evaluation.
        ArtifactError: a file is missing, damaged or changed.
    """
    run = RunFolder.existing(path)
    summary = read_json(run.summary) if run.summary.is_file() else {}
    if summary and "evaluation" not in summary:
        finished = open_finished(path)
        sides = {"before": finished.before, "after": finished.after}
        return tuple(_evaluated(run, name, side.result, side.samples) for name, side in sides.items())
    names = [name for name, stage in _STAGES.items() if is_done(run, stage)]
    if not names:
        raise RunFolderError(
            f"{path} holds no evaluation",
            got="no finished stage " + ", ".join(_STAGES.values()),
            remedy="evaluate the model with `seawall run` or `seawall eval`",
        )
    folders = {name: finished_stage(run, _STAGES[name]) for name in names}
    return tuple(
        _evaluated(run, name, EvalResult.load(folder), load_samples(folder / SAMPLES))
        for name, folder in folders.items()
    )


def _evaluated(run: RunFolder, name: str, result: EvalResult, samples: list[Sample]) -> Evaluated:
    manifest = read_json(run.manifest)
    times = manifest.get("stages", {}).get(_STAGES[name], {})
    recipe = read_json(run.resolved)
    return Evaluated(name, result, tuple(samples), recipe=recipe, manifest=manifest, times=times)

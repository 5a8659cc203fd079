"""A finished run for experiment trackers: the repair's losses by update, and the rates before and after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from seawall.errors import SeawallError
from seawall.formats.evaluations import Evaluated, read_evaluations
from seawall.formats.extras import require_extra
from seawall.runs.files import read_metrics, storage_errors
from seawall.runs.folder import RunFolder
from seawall.runs.publish import published, require_free
from seawall.runs.stage import finished_stage, is_done
from seawall.train.trackers import numbers_of

_PHASES = ("expert", "router")
"""Steps of a round, which name the numbers of their updates."""
TrackerName = Literal["tensorboard", "trackio", "wandb"]
Point = tuple[int, dict[str, float]]
"""A step, and the numbers at it."""


def write_tracker(path: Path, output: Path, tracker: TrackerName) -> Path:
    """Writes a run's curves and rates for a tracker; sends nothing.

    Args:
        path: a run, finished or not, with an evaluation.
        output: new or empty folder for the tracker's files.
        tracker: one of `TRACKERS`.

    Raises:
        ConfigError: the tracker is not installed.
        SeawallError: trackio fails.
        RunFolderError: no evaluation in the folder, or the output exists.
        ArtifactError: a file was changed.
    """
    extra = "trackers" if tracker == "tensorboard" else None
    require_extra(f"--tracker {tracker}", package=tracker, module=tracker, extra=extra)
    require_free(output)
    evaluations = read_evaluations(path)
    points = [*repair_points(RunFolder.existing(path)), *map(_rates, enumerate(evaluations))]
    with storage_errors(output), published(output) as scratch:
        TRACKERS[tracker](scratch, evaluations[0], points)
    return output


def repair_points(run: RunFolder) -> Iterator[Point]:
    """The numbers of every update, as `repair.trackers` reports them, by its place in the run; none before a repair."""
    if not is_done(run, "repair"):
        return
    for step, row in enumerate(read_metrics(finished_stage(run, "repair") / "metrics.jsonl"), start=1):
        yield step, numbers_of(row)


def _rates(numbered: tuple[int, Evaluated]) -> Point:
    """The rates of one evaluation, under `rates/`; step 0 is before the repair, step 1 after it."""
    step, evaluated = numbered
    rates = {f"rates/{group}": rate.rate for group, rate in evaluated.result.groups.items()}
    loss = evaluated.result.gold_loss
    return step, {name: value for name, value in {**rates, "gold_answer_loss": loss}.items() if value is not None}


def _tensorboard(folder: Path, evaluated: Evaluated, points: list[Point]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(folder))
    for step, numbers in points:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
    writer.close()


def _wandb(folder: Path, evaluated: Evaluated, points: list[Point]) -> None:
    """An offline run of Weights & Biases; `wandb sync` uploads it."""
    import wandb

    recipe = dict(evaluated.recipe)
    run = wandb.init(project="seawall", name=str(recipe["name"]), dir=str(folder), config=recipe, mode="offline")
    for phase in _PHASES:
        run.define_metric(f"{phase}/*", step_metric="update")
    run.define_metric("rates/*", step_metric="evaluation")
    for step, numbers in points:
        axis = "update" if any(name.partition("/")[0] in _PHASES for name in numbers) else "evaluation"
        run.log({axis: step, **numbers})
    run.finish()


_TRACKIO = """
import json, sys, trackio
document = json.load(sys.stdin)
trackio.init(project="seawall", name=document["name"], config=document["recipe"], embed=False, auto_log_gpu=False)
for step, numbers in document["points"]:
    trackio.log(numbers, step=step)
trackio.finish()
"""
"""Runs in a process of its own: trackio reads its folder when it is imported."""


def _trackio(folder: Path, evaluated: Evaluated, points: list[Point]) -> None:
    """A database of trackio; `TRACKIO_DIR=FOLDER trackio show` opens it."""
    recipe = dict(evaluated.recipe)
    document = {"name": str(recipe["name"]), "recipe": recipe, "points": points}
    local = {name: value for name, value in os.environ.items() if not name.startswith("TRACKIO_")}
    process = subprocess.run(
        [sys.executable, "-c", _TRACKIO],
        input=json.dumps(document),
        env={**local, "TRACKIO_DIR": str(folder.absolute())},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode != 0:
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise SeawallError("trackio could not write the run", got=last, remedy="use --tracker tensorboard")


TRACKERS: Mapping[TrackerName, Callable[[Path, Evaluated, list[Point]], None]] = {
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    "wandb": _wandb,
}
"""Writers by the tracker's name."""

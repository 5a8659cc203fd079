"""Checkpoints after each round: weights, optimizers, history; no pickle. A killed repair goes on with the same bits."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from safetensors.torch import load_file, save_file
from torch import Tensor

from seawall.repair.rounds import ValidationScores
from seawall.repair.trainables import Trainables
from seawall.train.loop import Trainer

_KEPT = "round-*"


@final
@dataclass
class Progress:
    """What a repair has done so far.

    Attributes:
        before: validation scores of the untouched model.
        scores: validation scores after each finished round.
        steps: updates done, by step ("expert", "router").
        rows: one row per update, for the metrics.
    """

    before: ValidationScores
    scores: list[ValidationScores] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=lambda: {"expert": 0, "router": 0})
    rows: list[dict[str, Any]] = field(default_factory=list)


def save_round(folder: Path, progress: Progress, trainables: Trainables, trainers: Mapping[str, Trainer[Any]]) -> None:
    """Writes `round-N/` whole or not at all. The optimizers of earlier rounds are removed, their weights stay."""
    number = len(progress.scores)
    scratch = folder / f".round-{number}.part"
    if scratch.exists():
        shutil.rmtree(scratch)
    scratch.mkdir(parents=True)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in trainables.state().items()}
    save_file(tensors, scratch / "weights.safetensors")
    for name, trainer in trainers.items():
        trainer.save(scratch / f"optimizer-{name}.safetensors")
    state = {
        "before": progress.before.as_row(),
        "scores": [scores.as_row() for scores in progress.scores],
        "steps": progress.steps,
        "rows": progress.rows,
    }
    (scratch / "state.json").write_text(json.dumps(state), encoding="utf-8")
    _flush(scratch)
    target = folder / f"round-{number}"
    scratch.rename(target)
    for older in folder.glob(_KEPT):
        if older != target:
            for optimizer in older.glob("optimizer-*.safetensors"):
                optimizer.unlink()


def load_progress(folder: Path) -> Progress | None:
    """What the last finished round left; None where no round is finished."""
    rounds = finished_rounds(folder)
    if not rounds:
        return None
    state = json.loads((rounds[-1] / "state.json").read_text(encoding="utf-8"))
    return Progress(
        ValidationScores(**state["before"]),
        [ValidationScores(**row) for row in state["scores"]],
        state["steps"],
        state["rows"],
    )


def finished_rounds(folder: Path) -> list[Path]:
    """The folders of finished rounds, in order."""
    return sorted(folder.glob(_KEPT), key=lambda path: int(path.name.partition("-")[2]))


def round_weights(folder: Path, number: int) -> dict[str, Tensor]:
    """The copies' values after round `number`, counted from 1."""
    return load_file(folder / f"round-{number}" / "weights.safetensors")


def resume(folder: Path, progress: Progress, trainables: Trainables, trainers: Mapping[str, Trainer[Any]]) -> None:
    """Puts weights and optimizers back as the last finished round left them."""
    last = len(progress.scores)
    trainables.load_state(round_weights(folder, last))
    for name, trainer in trainers.items():
        trainer.load(folder / f"round-{last}" / f"optimizer-{name}.safetensors", steps=progress.steps[name])


def _flush(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

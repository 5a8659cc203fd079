"""Checkpoints of a repair: weights, optimizers, random state, history; no pickle.

`round-N/` is written after round N and keeps that round's weights for the final choice; `step-N/` is written within a
round, after N updates in total. Each is written under a temporary name and renamed, so it is complete or absent, and
only the newest holds the training state. `scores.json` holds the validation scores. A killed repair resumes from these
to the same bits.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from torch import Tensor

from seawall.artifacts.store import load_document, load_tensors, save_document, save_tensors
from seawall.evaluation.decision import ValidationScores
from seawall.methods.rasa.repair.rounds import RepairProgress
from seawall.methods.rasa.repair.trainables import Trainables
from seawall.runs.files import flush_tree, publish
from seawall.train.loop import Trainer, random_state, set_random_state

Trainers = Mapping[str, Trainer[Any]]

_STATE, _SCORES = "repair-checkpoint", "repair-scores"
_STATE_FILE, _WEIGHTS, _TRAINING = "state.json", "weights", "training"


@final
class Checkpoints:
    """The checkpoints of one repair, in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._scores = folder / "scores.json"

    def progress(self) -> RepairProgress | None:
        """The saved progress; None for a new repair.

        Raises:
            ArtifactError: a checkpoint is damaged.
        """
        if not self._scores.is_file():
            return None
        scores, newest = load_document(self._scores, _SCORES), self._newest()
        state: dict[str, Any] = self._state(newest) if newest else {"trained": 0, "rows": []}
        measured = [ValidationScores(**row) for row in scores["scores"]]
        before = measured[0] if measured else None
        return RepairProgress(before, measured[1:], state["trained"], state["rows"])

    def save_scores(self, progress: RepairProgress) -> None:
        """Writes the validation scores: before the repair, and after each round."""
        measured = () if progress.before is None else (progress.before, *progress.scores)
        rows = [scores.as_row() for scores in measured]
        save_document(self._scores, _SCORES, {"scores": rows})

    def save_round(self, progress: RepairProgress, trainables: Trainables, trainers: Trainers) -> None:
        """Writes the checkpoint of the last round, and removes training state that is no longer needed."""
        target = self._write(f"round-{progress.trained}", progress, trainables, trainers)
        for older in self._folder.glob("round-*"):
            if older != target:
                (older / f"{_TRAINING}.safetensors").unlink(missing_ok=True)
        self._drop_steps(but=None)

    def save_step(self, progress: RepairProgress, trainables: Trainables, trainers: Trainers) -> None:
        """Writes a checkpoint within a round, and removes the previous one."""
        self._drop_steps(but=self._write(f"step-{len(progress.rows)}", progress, trainables, trainers))

    def restore(self, trainables: Trainables, trainers: Trainers) -> None:
        """Restores weights, optimizers and random state from the newest checkpoint, if there is one.

        Raises:
            ArtifactError: the checkpoint is damaged, or belongs to other parameters.
        """
        newest = self._newest()
        if newest is None:
            return
        trainables.load_state(self._load(newest, _WEIGHTS))
        training = self._load(newest, _TRAINING)
        for name, trainer in trainers.items():
            trainer.load_state(_part(training, f"{name}/"))
        set_random_state(_part(training, "random/"))

    def round_weights(self, number: int) -> dict[str, Tensor]:
        """The trainable copies' values after round `number` (from 1).

        Raises:
            ArtifactError: the file is missing or damaged.
        """
        return self._load(self._folder / f"round-{number}", _WEIGHTS)

    def _write(self, name: str, progress: RepairProgress, trainables: Trainables, trainers: Trainers) -> Path:
        target, scratch = self._folder / name, self._folder / f".{name}.part"
        for leftover in [*self._folder.glob(".*-*.part"), *self._folder.glob(name)]:
            shutil.rmtree(leftover)
        scratch.mkdir(parents=True)
        training = {f"random/{key}": tensor for key, tensor in random_state().items()}
        for phase, trainer in trainers.items():
            training |= {f"{phase}/{key}": tensor for key, tensor in trainer.state().items()}
        files = {_WEIGHTS: trainables.state(), _TRAINING: training}
        hashes = {key: save_tensors(scratch / f"{key}.safetensors", files[key])["sha256"] for key in files}
        state = {"trained": progress.trained, "rows": progress.rows, "sha256": hashes}
        save_document(scratch / _STATE_FILE, _STATE, state)
        flush_tree(scratch)
        publish(scratch, target)
        return target

    def _newest(self) -> Path | None:
        """The checkpoint with the most updates; of equals the round's, which replaces the step's."""
        checkpoints = [
            state.parent for kind in ("round", "step") for state in self._folder.glob(f"{kind}-*/{_STATE_FILE}")
        ]
        return max(
            checkpoints,
            key=lambda folder: (len(self._state(folder)["rows"]), folder.name.startswith("round")),
            default=None,
        )

    def _state(self, checkpoint: Path) -> dict[str, Any]:
        return load_document(checkpoint / _STATE_FILE, _STATE)

    def _load(self, checkpoint: Path, key: str) -> dict[str, Tensor]:
        return load_tensors(checkpoint / f"{key}.safetensors", sha256=self._state(checkpoint)["sha256"][key])

    def _drop_steps(self, *, but: Path | None) -> None:
        for older in self._folder.glob("step-*"):
            if older != but:
                # Remove the state file first, so that a half-removed folder does not count as a checkpoint.
                (older / _STATE_FILE).unlink(missing_ok=True)
                shutil.rmtree(older)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

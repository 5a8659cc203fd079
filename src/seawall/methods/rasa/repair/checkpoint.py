"""Checkpoints of a repair: weights, optimizers, random state, history; no pickle.

`round-N/` is written when round N is trained and keeps that round's weights, to choose from at the end; `step-N/` is
written within a round, after N updates in all. Each is written under another name and renamed, so it is there whole or
not at all, and only the newest holds what training needs to go on. `scores.json` holds what validation measured. A
killed repair goes on from these to the same bits.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from torch import Tensor

from seawall.artifacts.store import load_document, load_tensors, save_document, save_tensors
from seawall.methods.rasa.repair.rounds import Progress
from seawall.methods.rasa.repair.trainables import Trainables
from seawall.runs.files import flush_tree, publish
from seawall.shell.validation import ValidationScores
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

    def progress(self) -> Progress | None:
        """What was done so far; None where the repair begins.

        Raises:
            ArtifactError: a checkpoint is damaged.
        """
        if not self._scores.is_file():
            return None
        scores, newest = load_document(self._scores, _SCORES), self._newest()
        state: dict[str, Any] = self._state(newest) if newest else {"trained": 0, "rows": []}
        before, *after = [ValidationScores(**row) for row in scores["scores"]]
        return Progress(before, after, state["trained"], state["rows"])

    def save_scores(self, progress: Progress) -> None:
        """Writes what validation measured: before the repair, and after each round."""
        rows = [scores.as_row() for scores in (progress.before, *progress.scores)]
        save_document(self._scores, _SCORES, {"scores": rows})

    def save_round(self, progress: Progress, trainables: Trainables, trainers: Trainers) -> None:
        """Writes the checkpoint of the round that was just trained, and clears away what no longer matters."""
        target = self._write(f"round-{progress.trained}", progress, trainables, trainers)
        for older in self._folder.glob("round-*"):
            if older != target:
                (older / f"{_TRAINING}.safetensors").unlink(missing_ok=True)
        self._drop_steps(but=None)

    def save_step(self, progress: Progress, trainables: Trainables, trainers: Trainers) -> None:
        """Writes a checkpoint within a round; the one before it goes."""
        self._drop_steps(but=self._write(f"step-{len(progress.rows)}", progress, trainables, trainers))

    def restore(self, trainables: Trainables, trainers: Trainers) -> None:
        """Puts weights, optimizers and random state back as the newest checkpoint has them, if there is one.

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
        """The copies' values after round `number`, counted from 1.

        Raises:
            ArtifactError: they are missing or damaged.
        """
        return self._load(self._folder / f"round-{number}", _WEIGHTS)

    def _write(self, name: str, progress: Progress, trainables: Trainables, trainers: Trainers) -> Path:
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
        """The checkpoint with the most updates; a round's before a step's of as many, which it replaces."""
        found = [state.parent for kind in ("round", "step") for state in self._folder.glob(f"{kind}-*/{_STATE_FILE}")]
        return max(found, key=lambda at: (len(self._state(at)["rows"]), at.name.startswith("round")), default=None)

    def _state(self, checkpoint: Path) -> dict[str, Any]:
        return load_document(checkpoint / _STATE_FILE, _STATE)

    def _load(self, checkpoint: Path, key: str) -> dict[str, Tensor]:
        return load_tensors(checkpoint / f"{key}.safetensors", sha256=self._state(checkpoint)["sha256"][key])

    def _drop_steps(self, *, but: Path | None) -> None:
        for older in self._folder.glob("step-*"):
            if older != but:
                # First what makes it a checkpoint: one that is half removed must not be taken for one.
                (older / _STATE_FILE).unlink(missing_ok=True)
                shutil.rmtree(older)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

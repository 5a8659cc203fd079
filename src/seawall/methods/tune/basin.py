"""`SafetyBasin`: the AsFT penalty (arXiv 2506.08473, section 3) as a term of any trainer's loss."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from seawall.artifacts.anchor import Anchor
from seawall.config.anchor import AnchorConfig
from seawall.config.model import ModelConfig
from seawall.errors import ConfigError
from seawall.methods.tune.alignment import AlignmentDifference
from seawall.methods.tune.anchor import extract_anchor
from seawall.methods.tune.penalty import Penalty, Projector, StartingWeights, penalised
from seawall.methods.tune.safelora import SafeLoraReport, project
from seawall.methods.tune.terms import Attachment, LossTerm, require_attachable, require_weight
from seawall.models.files.stream import Part, outline, reading
from seawall.models.lora.updates import FullUpdate, Update, trainable_updates
from seawall.shell.model import open_checkpoint

__all__ = ["LOGGED", "Attachment", "SafetyBasin", "from_checkpoint"]

LOGGED = "safety_penalty"
"""Key of the trainer's logs for the mean unweighted penalty since the last log line."""
_TITLE, _WHAT = "safety basin", "the safety penalty"


class SafetyBasin:
    """Keeps the updates of fine-tuning within the alignment directions: L = L_task + weight * penalty.

        SafetyBasin.between("meta-llama/Llama-2-7b-chat-hf", "meta-llama/Llama-2-7b-hf").attach(trainer)
        trainer.train()

    The penalty is a sum over matrices and depends on no data. It enters each optimizer step once, independent of the
    number of accumulation steps and data-parallel processes.

    Args:
        anchor: of the model to fine-tune, or the folder of a saved anchor.
        weight: lambda; the paper uses 1 and finds no difference from 0.1 to 10. 0 logs the penalty without a gradient.
        projector: `subspace`, `reference`, `l2` or `random` (`seawall.methods.tune.penalty.Projector`).
        scaled: penalise LoRA's update with its factor alpha / r; the published weights are for the update without it.
        seed: of the random projector.

    Raises:
        ConfigError: a weight that is negative or not finite; an unknown projector.
    """

    def __init__(
        self,
        anchor: Anchor | str | PathLike[str],
        weight: float = 1.0,
        *,
        projector: Projector = "subspace",
        scaled: bool = False,
        seed: int = 0,
    ) -> None:
        loaded = anchor if isinstance(anchor, Anchor) else Anchor.load(Path(anchor))
        require_weight(weight, _WHAT)
        if projector not in get_args(Projector):
            raise ConfigError("unknown projector", got=projector, expected=", ".join(get_args(Projector)))
        self.anchor, self.weight, self.projector, self.scaled, self.seed = loaded, weight, projector, scaled, seed
        self._models: tuple[ModelConfig, ModelConfig] | None = None

    @classmethod
    def between(
        cls,
        aligned: str,
        base: str,
        *,
        targets: Sequence[str] | None = None,
        rank: int | None = 64,
        energy: float | None = None,
        weight: float = 1.0,
    ) -> SafetyBasin:
        """The basin of a model, from its checkpoint and that of its base.

        Both are read once, one tensor or expert slice at a time; `basin.save(folder)` saves the directions.

        Args:
            aligned: Hub id or folder of the model to fine-tune, or `lab`.
            base: Hub id or folder of the model that it was aligned from, or `lab-original`.
            targets: suffixes of module or stacked-parameter names, as in PEFT; None for all matrices.
            rank: maximum number of directions per matrix.
            energy: keep the fewest directions with this share of the difference's squared norm.
            weight: lambda.

        Raises:
            SeawallError: a checkpoint cannot be read, or the two are of different models.
        """
        config = AnchorConfig(
            aligned=ModelConfig(id=aligned),
            base=ModelConfig(id=base),
            targets=None if targets is None else tuple(targets),
            rank=rank,
            energy=energy,
        )
        basin = cls(extract_anchor(config), weight)
        basin._models = (config.aligned, config.base)
        return basin

    def save(self, folder: str | PathLike[str]) -> None:
        """Saves the directions in a folder, for `SafetyBasin(folder)`."""
        self.anchor.save(Path(folder))

    def project(
        self, model: torch.nn.Module, *, threshold: float | None = None, layers: int | None = None
    ) -> SafeLoraReport:
        """Safe LoRA (arXiv 2405.16833) on a trained adapter, in place: projects updates with a low cosine.

        A basin from `between` reads all of V = W_aligned - W_base from the two checkpoints once more; the anchor of
        another basin must keep every direction (`energy=1.0`).

        Args:
            model: a PEFT model with one LoRA adapter.
            threshold: project matrices with a lower cosine.
            layers: project this number of matrices, lowest cosines first.

        Raises:
            ConfigError: neither or both of threshold and layers; an adapter of matrices that the anchor lacks; an
                anchor without all of V.
        """
        difference = None
        if self._models is not None:
            difference = AlignmentDifference(*(open_checkpoint(config).outline for config in self._models))
        return project(model, self.anchor, difference=difference, threshold=threshold, layers=layers)

    def penalty(self, model: torch.nn.Module, *, start: StartingWeights | None = None) -> Penalty:
        """The penalty of a model's updates, for a custom training loop.

        Args:
            model: with its adapter, or with fully trained matrices.
            start: weights before training; None copies those of fully trained matrices now, in their own type.

        Raises:
            ConfigError: an adapter of matrices that the anchor lacks; other shapes; no penalty is possible, because no
                trained matrix is in the anchor, or (with a weight above 0) the directions span every trained matrix.
            UnsupportedModelError: an adapter other than LoRA.
        """
        updates = penalised(self.anchor, trainable_updates(model))
        if self.weight > 0 and self.projector in ("subspace", "random"):
            _require_outside(self.anchor, updates)
        return Penalty(
            self.anchor,
            updates,
            projector=self.projector,
            scaled=self.scaled,
            seed=self.seed,
            start=_copied(updates) if start is None else start,
        )

    def attach(self, trainer: Any, *, start: Path | None = None) -> Attachment:
        """Adds the penalty to the training loss of a `transformers.Trainer` or a subclass, such as TRL's trainers.

        The logs get `safety_penalty`; the evaluation loss is unchanged. Other terms, such as
        `seawall.methods.tune.drift.RoutingDrift`, can be attached to the same trainer.

        Args:
            trainer: before `train()`, with the model from which training starts.
            start: for fully trained matrices, the folder of the model's checkpoint: its files are read in every step
                instead of keeping a copy of the weights.

        Returns:
            the attachment: `remove()` it, or use it as a context manager.

        Raises:
            ConfigError: as `penalty`; a basin is attached already; the parameters are sharded (FSDP, DeepSpeed). In
                training: the trainer replaced its model (`model_init`).
            SeawallError (in training): a loss or a penalty that is not finite.
        """
        require_attachable(trainer, title=_TITLE, what=_WHAT)
        penalty = self.penalty(trainer.model, start=None if start is None else from_checkpoint(start))
        return Attachment(trainer, LossTerm(LOGGED, _TITLE, _WHAT, self.weight, lambda step: penalty()))


def from_checkpoint(folder: Path) -> StartingWeights:
    """Starting weights that are read from a checkpoint's files at every call.

    Raises:
        UnsupportedModelError, ArtifactError: as `seawall.models.files.stream.outline`.
    """
    checkpoint = outline(folder)
    parts: dict[str, list[Part]] = {}
    for part in checkpoint.sources:
        parts.setdefault(part.name, []).append(part)

    def read(name: str) -> Tensor:
        with reading(checkpoint) as reader:
            tensors = [reader.read(part)[name] for part in parts[name]]
        return torch.stack(tensors) if parts[name][0].expert is not None else tensors[0]

    return read


def _copied(updates: Sequence[Update]) -> StartingWeights:
    copies = {update.name: update.parameter.detach().clone() for update in updates if isinstance(update, FullUpdate)}
    return copies.__getitem__


def _require_outside(anchor: Anchor, updates: Sequence[Update]) -> None:
    """Refuse a penalty that is zero for every update."""
    trained = [anchor.matrices[update.name] for update in updates]
    if all(bool((matrix.ranks == matrix.rows).all()) for matrix in trained):
        raise ConfigError(
            "the anchor's directions span the output of every trained matrix, so the penalty is always 0",
            got=f"{len(trained)} matrices; the first has {trained[0].rows} directions in {trained[0].rows} dimensions",
            remedy="make the anchor with a lower rank, or with energy",
        )

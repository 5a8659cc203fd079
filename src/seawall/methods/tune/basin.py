"""Fine-tuning inside the safety basin: the AsFT penalty added to the loss of a trainer. arXiv 2506.08473, section 3."""

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
from seawall.methods.tune.anchor import extract_anchor
from seawall.methods.tune.penalty import Penalty, Projector, StartingWeights, penalised
from seawall.methods.tune.safelora import SafeLoraReport, project
from seawall.methods.tune.terms import Attachment, Term, require_attachable, require_weight
from seawall.models.files.stream import Part, outline, reading
from seawall.models.lora.updates import FullUpdate, Update, trainable_updates

__all__ = ["LOGGED", "Attachment", "SafetyBasin", "from_checkpoint"]

LOGGED = "safety_penalty"
"""The key of the trainer's logs that holds the mean unweighted penalty since the last line."""
_TITLE, _WHAT = "safety basin", "the safety penalty"


class SafetyBasin:
    """Keeps a fine-tuned model's updates within the directions of alignment: L = L_task + weight * penalty.

        SafetyBasin.between("meta-llama/Llama-2-7b-chat-hf", "meta-llama/Llama-2-7b-hf").attach(trainer)
        trainer.train()

    The penalty depends on no data. An optimizer step takes it once, whatever the number of accumulation steps and of
    data-parallel processes: each accumulation step adds its part, each process the same value, whose gradients the
    processes average. It is a sum over matrices, not a mean.

    Args:
        anchor: of the model that is fine-tuned, or the folder of a saved one.
        weight: lambda; the paper uses 1 and finds 0.1 to 10 alike. 0 only measures and logs.
        projector: `subspace`, or `reference`, `l2` or `random` (`seawall.methods.tune.penalty.Projector`).
        scaled: penalise LoRA's update with alpha / r; the published weights belong to the update without.
        seed: of the random projector.

    Raises:
        ConfigError: a weight below 0 or not finite; an unknown projector.
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
        """The basin of a model, from its checkpoint and that of the model that it was aligned from.

        Both are read once, a tensor or an expert's slice at a time; `basin.save(folder)` keeps the directions.

        Args:
            aligned: Hub id or folder of the model that is fine-tuned, or `lab`.
            base: Hub id or folder of the model that it was aligned from, or `lab-original`.
            targets: ends of the names of modules or stacked parameters, as PEFT takes them; None for all.
            rank: directions of each matrix, at most.
            energy: keep the fewest directions that hold this part of the difference's squared norm.
            weight: lambda.

        Raises:
            SeawallError: a checkpoint cannot be read, or the two are not of one model.
        """
        config = AnchorConfig(
            aligned=ModelConfig(id=aligned),
            base=ModelConfig(id=base),
            targets=None if targets is None else tuple(targets),
            rank=rank,
            energy=energy,
        )
        return cls(extract_anchor(config), weight)

    def save(self, folder: str | PathLike[str]) -> None:
        """Keeps the directions in a folder, for `SafetyBasin(folder)`."""
        self.anchor.save(Path(folder))

    def project(
        self, model: torch.nn.Module, *, threshold: float | None = None, layers: int | None = None
    ) -> SafeLoraReport:
        """Safe LoRA (arXiv 2405.16833) on a trained adapter, in place: updates that point elsewhere are projected.

        Args:
            model: of PEFT, with one LoRA adapter.
            threshold: project the matrices whose cosine is below it.
            layers: project this many matrices, the lowest cosines first.

        Raises:
            ConfigError: neither or both are given; an adapter of matrices that the anchor lacks.
        """
        return project(model, self.anchor, threshold=threshold, layers=layers)

    def penalty(self, model: torch.nn.Module, *, start: StartingWeights | None = None) -> Penalty:
        """The penalty of a model's updates, for training loops of one's own.

        Args:
            model: with its adapter, or with whole matrices that train.
            start: the weights before training; None copies those of whole matrices now, in their own type.

        Raises:
            ConfigError: an adapter of matrices that the anchor lacks; other shapes; nothing to penalise, because
                nothing trains that the anchor holds, or because it spans the output of all that does and the weight is
                not 0.
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
        """Add the penalty to the training loss of a `transformers.Trainer` or a subclass, TRL's trainers among them.

        Evaluation's loss stays the task's own. The logs get `safety_penalty`. Other terms, such as
        `seawall.methods.tune.drift.RoutingDrift`, may be on the same trainer.

        Args:
            trainer: before `train()`, with the model from which training starts.
            start: where whole matrices train: the folder of the checkpoint that the model was loaded from. Its files
                are then read in every step and no copy of the weights is kept.

        Returns:
            what takes the penalty off again: by `remove()`, or as a context manager.

        Raises:
            ConfigError: as `penalty`; a basin is attached already; the parameters are sharded (FSDP, DeepSpeed). In
                training: the trainer made itself another model (`model_init`).
            SeawallError (in training): a loss or a penalty that is not finite.
        """
        require_attachable(trainer, title=_TITLE, what=_WHAT)
        penalty = self.penalty(trainer.model, start=None if start is None else from_checkpoint(start))
        return Attachment(trainer, Term(LOGGED, _TITLE, _WHAT, self.weight, lambda moment: penalty()))


def from_checkpoint(folder: Path) -> StartingWeights:
    """Starting weights that are read from a checkpoint's files whenever they are asked for, and not kept.

    Raises:
        UnsupportedModelError, ArtifactError: as `seawall.models.files.stream.outline`.
    """
    found = outline(folder)
    parts: dict[str, list[Part]] = {}
    for part in found.sources:
        parts.setdefault(part.name, []).append(part)

    def read(name: str) -> Tensor:
        with reading(found) as reader:
            tensors = [reader.read(part)[name] for part in parts[name]]
        return torch.stack(tensors) if parts[name][0].expert is not None else tensors[0]

    return read


def _copied(updates: Sequence[Update]) -> StartingWeights:
    kept = {one.name: one.parameter.detach().clone() for one in updates if isinstance(one, FullUpdate)}
    return kept.__getitem__


def _require_outside(anchor: Anchor, updates: Sequence[Update]) -> None:
    """Refuse a penalty that would be zero whatever the update."""
    chosen = [anchor.matrices[one.name] for one in updates]
    if all(bool((one.ranks == one.rows).all()) for one in chosen):
        raise ConfigError(
            "the anchor's directions span the whole output of all matrices that train, so nothing would be penalised",
            got=f"{len(chosen)} matrices, {chosen[0].rows} directions of {chosen[0].rows}, first",
            remedy="make the anchor with a lower rank, or with energy",
        )

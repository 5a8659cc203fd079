"""Fine-tuning inside the safety basin: the AsFT penalty added to the loss of a trainer. arXiv 2506.08473, section 3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, final, get_args

import torch
from accelerate import DistributedType
from torch import Tensor

from seawall.artifacts.anchor import Anchor
from seawall.errors import ConfigError, SeawallError
from seawall.models.stream import Part, outline, reading
from seawall.models.updates import Update, WholeUpdate, trainable_updates
from seawall.tuning.penalty import Penalty, Projector, StartingWeights, penalised

LOGGED = "safety_penalty"
"""The key of the trainer's logs that holds the mean unweighted penalty since the last line."""
_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


class SafetyBasin:
    """Keeps a fine-tuned model's updates within the directions of alignment: L = L_task + weight * penalty.

        SafetyBasin(Anchor.load(folder)).attach(trainer)
        trainer.train()

    The penalty depends on no data. An optimizer step takes it once, whatever the number of accumulation steps and of
    data-parallel processes: each accumulation step adds its part, each process the same value, whose gradients the
    processes average. It is a sum over matrices, not a mean.

    Args:
        anchor: of the model that is fine-tuned.
        weight: lambda; the paper uses 1 and finds 0.1 to 10 alike. 0 only measures and logs.
        projector: `subspace`, or `reference`, `l2` or `random` (`seawall.tuning.penalty.Projector`).
        scaled: penalise LoRA's update with alpha / r; the published weights belong to the update without.
        seed: of the random projector.

    Raises:
        ConfigError: a weight below 0 or not finite; an unknown projector.
    """

    def __init__(
        self,
        anchor: Anchor,
        weight: float = 1.0,
        *,
        projector: Projector = "subspace",
        scaled: bool = False,
        seed: int = 0,
    ) -> None:
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError("the weight of the safety penalty is wrong", got=weight, expected="0 or more")
        if projector not in get_args(Projector):
            raise ConfigError("unknown projector", got=projector, expected=", ".join(get_args(Projector)))
        self.anchor, self.weight, self.projector, self.scaled, self.seed = anchor, weight, projector, scaled, seed

    def penalty(self, model: torch.nn.Module, *, start: StartingWeights | None = None) -> Penalty:
        """The penalty of a model's updates, for training loops of one's own.

        Args:
            model: with its adapter, or with whole matrices that train.
            start: the weights before training; None copies those of whole matrices now, in their own type.

        Raises:
            ConfigError: an adapter of matrices that the anchor lacks; other shapes; nothing to penalise, because
                nothing trains that the anchor holds or because it spans the output of all that does.
            UnsupportedModelError: an adapter other than LoRA.
        """
        updates = penalised(self.anchor, trainable_updates(model))
        if self.projector in ("subspace", "random"):
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

        Evaluation's loss stays the task's own. The logs get `safety_penalty`.

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
        if isinstance(vars(trainer).get("compute_loss"), _Loss):
            raise ConfigError("a safety basin is attached to this trainer already", remedy="remove() it first")
        kind = trainer.accelerator.distributed_type
        if kind in _SHARDED:
            raise ConfigError(
                "the safety penalty needs whole parameters on every device",
                got=f"{kind.value}, which shards them",
                expected="one device or data parallelism (DDP)",
            )
        penalty = self.penalty(trainer.model, start=None if start is None else from_checkpoint(start))
        return Attachment(trainer, penalty, self.weight)


@final
class Attachment:
    """A penalty on a trainer; made by `SafetyBasin.attach`."""

    def __init__(self, trainer: Any, penalty: Penalty, weight: float) -> None:
        self._trainer = trainer
        trainer.compute_loss = _Loss(trainer, penalty, weight)
        trainer.log = _Log(trainer.log, trainer.compute_loss)

    def remove(self) -> None:
        """Give the trainer its own loss and logs back."""
        for name in ("compute_loss", "log"):
            vars(self._trainer).pop(name, None)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.remove()


class _Loss:
    """Stands for a trainer's `compute_loss`."""

    def __init__(self, trainer: Any, penalty: Penalty, weight: float) -> None:
        self._trainer, self._own, self._model = trainer, trainer.compute_loss, trainer.model
        self._penalty, self._weight = penalty, weight
        self.seen: list[Tensor] = []

    def __call__(
        self, model: torch.nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        result = self._own(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        if not model.training:
            return result
        if self._trainer.model is not self._model:
            raise ConfigError(
                "the trainer has another model than when the safety basin was attached",
                remedy="give the trainer a model instead of model_init, and attach after it",
            )
        loss = result[0] if return_outputs else result
        _require_finite(loss, "the task's loss")
        with torch.set_grad_enabled(self._weight > 0):
            penalty = self._penalty()
        _require_finite(penalty, "the safety penalty")
        self.seen.append(penalty.detach())
        if self._weight > 0:
            loss = loss + self._weight * self._part(num_items_in_batch) * penalty.to(loss.device, loss.dtype)
        return (loss, result[1]) if return_outputs else loss

    def _part(self, num_items_in_batch: Any) -> float:
        """What of the penalty one accumulation step takes, after whose loss the trainer may divide by their number.

        This is the condition of `Trainer.training_step`.
        """
        trainer = self._trainer
        divided = trainer.loss_is_scaled_for_ga is False or (
            trainer.loss_is_scaled_for_ga is None
            and not (trainer.model_accepts_loss_kwargs and num_items_in_batch is not None)
            and trainer.compute_loss_func is None
        )
        steps = vars(trainer).get("current_gradient_accumulation_steps", trainer.args.gradient_accumulation_steps)
        return 1.0 if divided else 1.0 / steps


class _Log:
    """Stands for a trainer's `log`: training's lines get the mean penalty since the last one."""

    def __init__(self, own: Any, loss: _Loss) -> None:
        self._own, self._loss = own, loss

    def __call__(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._loss.seen:
            logs[LOGGED] = float(torch.stack(self._loss.seen).mean())
            self._loss.seen.clear()
        self._own(logs, *args, **kwargs)


def from_checkpoint(folder: Path) -> StartingWeights:
    """Starting weights that are read from a checkpoint's files whenever they are asked for, and not kept.

    Raises:
        UnsupportedModelError, ArtifactError: as `seawall.models.stream.outline`.
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
    kept = {one.name: one.parameter.detach().clone() for one in updates if isinstance(one, WholeUpdate)}
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


def _require_finite(value: Tensor, what: str) -> None:
    if not bool(value.isfinite().all()):
        raise SeawallError(
            f"{what} is not a finite number",
            got=float(value.detach().float().mean()),
            remedy="checkpoints written so far are whole; lower the learning rate, or find the batch that breaks it",
        )

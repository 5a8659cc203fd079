"""Terms added to the loss of a `transformers.Trainer`: any number of kinds, one term of each kind.

A term enters each optimizer step once, independent of the number of accumulation steps and data-parallel processes:
each accumulation step adds a part of it, and every process adds the same value, whose gradients are averaged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, final

import torch
from accelerate import DistributedType
from torch import Tensor

from seawall.errors import ConfigError, SeawallError

_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


class AccumulationStep(NamedTuple):
    """When a term is evaluated: in optimizer step `step` (from 0), accumulation step `part` of `parts`."""

    step: int
    part: int
    parts: int


@dataclass(frozen=True, eq=False)
class LossTerm:
    """A term of a loss.

    Attributes:
        logged: key of the trainer's logs for the mean unweighted value since the last log line.
        title: the kind of term, as in `safety basin`.
        what: the value's name, as in `the safety penalty`.
        weight: factor of the value; with 0 the value is logged without a gradient.
        value: the term () in one accumulation step, for autograd; an optimizer step adds the mean over its parts.
    """

    logged: str
    title: str
    what: str
    weight: float
    value: Callable[[AccumulationStep], Tensor]


def require_weight(weight: float, what: str) -> None:
    """Refuse a weight that is negative or not finite.

    Args:
        weight: the weight.
        what: the term's name, for the message.

    Raises:
        ConfigError: it is negative or not finite.
    """
    if not 0 <= weight < float("inf"):
        raise ConfigError(f"the weight of {what} must be finite and 0 or more", got=weight)


def require_attachable(trainer: Any, *, title: str, what: str) -> None:
    """Refuse a trainer that cannot take the term, before any expensive preparation.

    Raises:
        ConfigError: a term of this kind is attached already; the parameters are sharded (FSDP, DeepSpeed).
    """
    loss = vars(trainer).get("compute_loss")
    if isinstance(loss, _Loss) and any(attached.term.title == title for attached in loss.attached):
        raise ConfigError(f"a {title} is attached to this trainer already", remedy="remove() it first")
    kind = trainer.accelerator.distributed_type
    if kind in _SHARDED:
        raise ConfigError(
            f"{what} needs unsharded parameters on every device",
            got=f"{kind.value}, which shards them",
            expected="one device or data parallelism (DDP)",
        )


@final
class Attachment:
    """A term attached to a trainer; `SafetyBasin.attach` and `RoutingDrift.attach` return one."""

    def __init__(self, trainer: Any, term: LossTerm) -> None:
        require_attachable(trainer, title=term.title, what=term.what)
        self._trainer, self._attached = trainer, _AttachedTerm(term)
        if not isinstance(vars(trainer).get("compute_loss"), _Loss):
            trainer.compute_loss = _Loss(trainer)
            trainer.log = _Log(trainer.log, trainer.compute_loss)
        trainer.compute_loss.attached.append(self._attached)

    def remove(self) -> None:
        """Detach the term; without any term the trainer has its original loss and logs."""
        loss = vars(self._trainer).get("compute_loss")
        if not isinstance(loss, _Loss) or self._attached not in loss.attached:
            return
        loss.attached.remove(self._attached)
        if not loss.attached:
            for name in ("compute_loss", "log"):
                vars(self._trainer).pop(name, None)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()


@dataclass(eq=False)
class _AttachedTerm:
    """A term, and its values since the last log line, each with its share of an optimizer step."""

    term: LossTerm
    values: list[Tensor] = field(default_factory=list)
    parts: list[float] = field(default_factory=list)

    def mean(self) -> float:
        """The mean over optimizer steps with any number of parts; clears the values."""
        parts = torch.tensor(self.parts)
        mean = float(torch.stack(self.values).float().cpu() @ parts / parts.sum())
        self.values.clear()
        self.parts.clear()
        return mean


class _Loss:
    """Replaces a trainer's `compute_loss`: the original loss and the attached terms."""

    def __init__(self, trainer: Any) -> None:
        self._trainer, self._own, self._model = trainer, trainer.compute_loss, trainer.model
        self._step, self._calls = -1, 0
        self.attached: list[_AttachedTerm] = []

    def __call__(
        self, model: torch.nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        result = self._own(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        if not model.training:
            return result
        if self._trainer.model is not self._model:
            raise ConfigError(
                f"the trainer replaced its model after the {self.attached[0].term.title} was attached",
                remedy="give the trainer a model instead of model_init, and attach afterwards",
            )
        loss = result[0] if return_outputs else result
        _require_finite(loss, "the task's loss")
        step, part = self._accumulation_step(), self._part(num_items_in_batch)
        for attached in self.attached:
            value = _value(attached, step)
            if attached.term.weight > 0:
                loss = loss + attached.term.weight * part * value.to(loss.device, loss.dtype)
        return (loss, result[1]) if return_outputs else loss

    def _accumulation_step(self) -> AccumulationStep:
        step = self._trainer.state.global_step
        self._calls = self._calls + 1 if step == self._step else 0
        self._step = step
        parts = self._num_parts()
        return AccumulationStep(step, self._calls % parts, parts)

    def _num_parts(self) -> int:
        """Accumulation steps of this optimizer step."""
        trainer = self._trainer
        parts = vars(trainer).get("current_gradient_accumulation_steps", trainer.args.gradient_accumulation_steps)
        return int(parts)

    def _part(self, num_items_in_batch: Any) -> float:
        """The share of a term in one accumulation step: 1 where the trainer itself divides the loss by their number.

        The condition is that of `Trainer.training_step`.
        """
        trainer = self._trainer
        divided = trainer.loss_is_scaled_for_ga is False or (
            trainer.loss_is_scaled_for_ga is None
            and not (trainer.model_accepts_loss_kwargs and num_items_in_batch is not None)
            and trainer.compute_loss_func is None
        )
        return 1.0 if divided else 1.0 / self._num_parts()


def _value(attached: _AttachedTerm, step: AccumulationStep) -> Tensor:
    with torch.set_grad_enabled(attached.term.weight > 0):
        value = attached.term.value(step)
    _require_finite(value, attached.term.what)
    attached.values.append(value.detach())
    attached.parts.append(1 / step.parts)
    return value


class _Log:
    """Replaces a trainer's `log`: adds the mean of each term since the last line to the lines of training."""

    def __init__(self, own: Any, loss: _Loss) -> None:
        self._own, self._loss = own, loss

    def __call__(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        for attached in self._loss.attached if "loss" in logs else ():
            if attached.values:
                logs[attached.term.logged] = attached.mean()
        self._own(logs, *args, **kwargs)


def _require_finite(value: Tensor, what: str) -> None:
    if not bool(value.isfinite().all()):
        raise SeawallError(
            f"{what} is not a finite number",
            got=float(value.detach().float().mean()),
            remedy="lower the learning rate, or find the batch that causes it; checkpoints written so far are complete",
        )

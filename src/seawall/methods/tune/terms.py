"""Terms that are added to the loss of a `transformers.Trainer`, any number of them, one of each kind.

An optimizer step takes a term once, whatever the number of accumulation steps and of data-parallel processes: each
accumulation step adds its part, each process the same value, whose gradients the processes average.
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


class Moment(NamedTuple):
    """When a term is asked: after so many optimizer steps, in accumulation step `part` of `parts`."""

    step: int
    part: int
    parts: int


@dataclass(frozen=True, eq=False)
class Term:
    """What is added to a loss.

    Attributes:
        logged: the key of the trainer's logs that holds its mean unweighted value since the last line.
        title: what is attached, as in `safety basin`.
        what: what is measured, as in `the safety penalty`.
        weight: its factor; with 0 it is measured and logged, and takes no gradient.
        value: the term () at a moment, for autograd. The mean over the parts of a step is what the step takes.
    """

    logged: str
    title: str
    what: str
    weight: float
    value: Callable[[Moment], Tensor]


def require_weight(weight: float, what: str) -> None:
    """Refuse a weight below 0 or not finite.

    Raises:
        ConfigError: names what it is the weight of.
    """
    if not 0 <= weight < float("inf"):
        raise ConfigError(f"the weight of {what} is wrong", got=weight, expected="0 or more")


def require_attachable(trainer: Any, *, title: str, what: str) -> None:
    """Refuse a trainer that cannot take the term; before anything costly is done for it.

    Raises:
        ConfigError: a term of that kind is attached already; the parameters are sharded (FSDP, DeepSpeed).
    """
    loss = vars(trainer).get("compute_loss")
    if isinstance(loss, _Loss) and any(one.term.title == title for one in loss.attached):
        raise ConfigError(f"a {title} is attached to this trainer already", remedy="remove() it first")
    kind = trainer.accelerator.distributed_type
    if kind in _SHARDED:
        raise ConfigError(
            f"{what} needs whole parameters on every device",
            got=f"{kind.value}, which shards them",
            expected="one device or data parallelism (DDP)",
        )


@final
class Attachment:
    """A term on a trainer; made by `attach` of `SafetyBasin` and `RoutingDrift`."""

    def __init__(self, trainer: Any, term: Term) -> None:
        require_attachable(trainer, title=term.title, what=term.what)
        self._trainer, self._mine = trainer, _Attached(term)
        if not isinstance(vars(trainer).get("compute_loss"), _Loss):
            trainer.compute_loss = _Loss(trainer)
            trainer.log = _Log(trainer.log, trainer.compute_loss)
        trainer.compute_loss.attached.append(self._mine)

    def remove(self) -> None:
        """Take the term off; after the last one the trainer has its own loss and logs again."""
        loss = vars(self._trainer).get("compute_loss")
        if not isinstance(loss, _Loss) or self._mine not in loss.attached:
            return
        loss.attached.remove(self._mine)
        if not loss.attached:
            for name in ("compute_loss", "log"):
                vars(self._trainer).pop(name, None)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.remove()


@dataclass(eq=False)
class _Attached:
    """A term, and its values since the last line of the logs, each with the part of its optimizer step."""

    term: Term
    seen: list[Tensor] = field(default_factory=list)
    parts: list[float] = field(default_factory=list)

    def mean(self) -> float:
        """Over optimizer steps, whatever number of parts each had; forgets the values."""
        parts = torch.tensor(self.parts)
        mean = float(torch.stack(self.seen).float().cpu() @ parts / parts.sum())
        self.seen.clear()
        self.parts.clear()
        return mean


class _Loss:
    """Stands for a trainer's `compute_loss`."""

    def __init__(self, trainer: Any) -> None:
        self._trainer, self._own, self._model = trainer, trainer.compute_loss, trainer.model
        self._step, self._calls = -1, 0
        self.attached: list[_Attached] = []

    def __call__(
        self, model: torch.nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        result = self._own(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        if not model.training:
            return result
        if self._trainer.model is not self._model:
            raise ConfigError(
                f"the trainer has another model than when the {self.attached[0].term.title} was attached",
                remedy="give the trainer a model instead of model_init, and attach after it",
            )
        loss = result[0] if return_outputs else result
        _require_finite(loss, "the task's loss")
        moment, part = self._moment(), self._part(num_items_in_batch)
        for one in self.attached:
            value = _value(one, moment)
            if one.term.weight > 0:
                loss = loss + one.term.weight * part * value.to(loss.device, loss.dtype)
        return (loss, result[1]) if return_outputs else loss

    def _moment(self) -> Moment:
        step = self._trainer.state.global_step
        self._calls = self._calls + 1 if step == self._step else 0
        self._step = step
        parts = self._steps()
        return Moment(step, self._calls % parts, parts)

    def _steps(self) -> int:
        """Accumulation steps of this optimizer step."""
        trainer = self._trainer
        named = vars(trainer).get("current_gradient_accumulation_steps", trainer.args.gradient_accumulation_steps)
        return int(named)

    def _part(self, num_items_in_batch: Any) -> float:
        """What of a term one accumulation step takes, after whose loss the trainer may divide by their number.

        This is the condition of `Trainer.training_step`.
        """
        trainer = self._trainer
        divided = trainer.loss_is_scaled_for_ga is False or (
            trainer.loss_is_scaled_for_ga is None
            and not (trainer.model_accepts_loss_kwargs and num_items_in_batch is not None)
            and trainer.compute_loss_func is None
        )
        return 1.0 if divided else 1.0 / self._steps()


def _value(one: _Attached, moment: Moment) -> Tensor:
    with torch.set_grad_enabled(one.term.weight > 0):
        value = one.term.value(moment)
    _require_finite(value, one.term.what)
    one.seen.append(value.detach())
    one.parts.append(1 / moment.parts)
    return value


class _Log:
    """Stands for a trainer's `log`: training's lines get the mean of every term since the last one."""

    def __init__(self, own: Any, loss: _Loss) -> None:
        self._own, self._loss = own, loss

    def __call__(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        for one in self._loss.attached if "loss" in logs else ():
            if one.seen:
                logs[one.term.logged] = one.mean()
        self._own(logs, *args, **kwargs)


def _require_finite(value: Tensor, what: str) -> None:
    if not bool(value.isfinite().all()):
        raise SeawallError(
            f"{what} is not a finite number",
            got=float(value.detach().float().mean()),
            remedy="checkpoints written so far are whole; lower the learning rate, or find the batch that breaks it",
        )

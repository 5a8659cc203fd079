"""The training loop: AdamW on named parameters, with a loss from the calling stage."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Generic, Literal, Protocol, TypeVar, final

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from seawall.config.repair import OptimizerName
from seawall.errors import SeawallError
from seawall.models.memory import unless_out_of_memory
from seawall.train.optimizers import make_optimizer, restore_state, saved_state

Item = TypeVar("Item")
Schedule = Literal["constant", "linear", "cosine"]
Losses = tuple[Tensor, dict[str, float]]
"""The loss to minimise, and its terms for the log."""
BatchLoss = Callable[[Item], Iterable[Losses]]
"""The loss of a batch as pieces that sum to it, one per forward pass; computing them in turn saves memory.

A generator is resumed after the backward pass of its piece, and closed at the end, so that its hooks see both passes.
"""
BackOff = Callable[[], bool]
"""Called when memory ran out in an update: makes forward passes smaller; False where that is impossible."""
Row = dict[str, float]
"""The log of one update: step, lr, loss, gradient_norm, and the terms of the loss."""


class Peers(Protocol):
    """The other processes that make each update too, each with some pieces of the loss."""

    def begin(self, batch: object) -> None:
        """Called before an update, so that the others begin it as well."""
        ...

    def totals(self, value: float, parts: Mapping[str, float]) -> tuple[float, Mapping[str, float]]:
        """The sums over all processes of the loss and of its terms; equal in all of them."""
        ...

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces each gradient by its sum over all processes; a parameter without any keeps none."""
        ...


@dataclass(frozen=True)
class Settings:
    """AdamW and its learning rate schedule.

    Attributes:
        lr: peak learning rate.
        weight_decay: AdamW's weight decay.
        max_grad_norm: maximum norm of the gradient (clipping).
        schedule: `constant`, or a `linear` or `cosine` decay to 0 at `total_steps`.
        warmup_steps: updates with linear warmup from 0, as in transformers' schedules.
        total_steps: total number of updates; required unless the schedule is `constant`.
        optimizer: the AdamW, by its name in `repair.optimizer`.
    """

    lr: float
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    total_steps: int | None = None
    optimizer: OptimizerName = "adamw"

    def lr_at(self, step: int) -> float:
        """The learning rate of update `step`, counted from 0. It depends on `step` alone, so resuming repeats it.

        Raises:
            ValueError: the schedule decays, and `total_steps` is None.
        """
        if step < self.warmup_steps:
            return self.lr * step / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        if self.total_steps is None:
            raise ValueError(f"a {self.schedule} schedule needs total_steps")
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        return self.lr * ((1 - progress) if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress)))


@final
class Trainer(Generic[Item]):
    """Steps an optimizer over batches. Parameters are named, so that the state can be saved without pickle.

    Attributes:
        steps: number of updates so far.
        back_off: called when memory ran out in an update.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        settings: Settings,
        accelerator: Accelerator,
        *,
        factors: Mapping[str, float] | None = None,
        back_off: BackOff = lambda: False,
        peers: Peers | None = None,
    ) -> None:
        """Parameters are named; `factors` are of the learning rate by name, where it differs from `settings.lr`.

        An update that exceeds memory is repeated whole after each successful `back_off`. With `peers`, each process has
        its pieces of the loss, and all make the same update.
        """
        self._peers = peers
        self._parameters = dict(parameters)
        self._settings = settings
        self._accelerator = accelerator
        by_factor: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self._parameters.items():
            by_factor.setdefault((factors or {}).get(name, 1.0), []).append(parameter)
        groups = [{"params": group, "factor": factor} for factor, group in by_factor.items()]
        self._optimizer = make_optimizer(settings.optimizer, groups, lr=settings.lr, weight_decay=settings.weight_decay)
        self.back_off = back_off
        self.steps = 0

    def fit(self, batches: Iterable[Item], loss: BatchLoss[Item], log: Callable[[Row], None]) -> None:
        """Makes one update per batch, and calls `log` after each.

        Raises:
            SeawallError: a loss or gradient is not finite; parameters and state are as before this update.
            RuntimeError: memory ran out; likewise.
        """
        for batch in batches:
            log(self._update(batch, loss))

    def _update(self, batch: Item, loss: BatchLoss[Item]) -> Row:
        value, parts = self._gradients(batch, loss)
        norm = float(self._accelerator.clip_grad_norm_(list(self._parameters.values()), self._settings.max_grad_norm))
        self._require_finite("norm of the gradient", norm)
        lr = self._settings.lr_at(self.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return {"step": self.steps, "lr": lr, "loss": value, "gradient_norm": norm, **parts}

    def _gradients(self, batch: Item, loss: BatchLoss[Item]) -> tuple[float, Mapping[str, float]]:
        """The loss and its terms; the gradients are those of the whole batch, however often memory runs out."""
        if self._peers is not None:
            self._peers.begin(batch)
        attempt = None
        while attempt is None:
            attempt = unless_out_of_memory(partial(self._accumulate, batch, loss), give_up=self._gives_up)
        if self._peers is None:
            return attempt
        total, terms = self._peers.totals(*attempt)
        self._require_finite("training loss", total)
        self._peers.sum_gradients(self._parameters.values())
        return total, terms

    def _gives_up(self) -> bool:
        self._optimizer.zero_grad(set_to_none=True)
        return not self.back_off()

    def _accumulate(self, batch: Item, loss: BatchLoss[Item]) -> tuple[float, Counter[str]]:
        value, parts = 0.0, Counter[str]()
        pieces = loss(batch)
        with ExitStack() as stack:
            if isinstance(pieces, Generator):
                stack.callback(pieces.close)
            for piece, piece_parts in pieces:
                value += float(piece.detach())
                if self._peers is None:
                    self._require_finite("training loss", value)
                self._accelerator.backward(piece)
                parts.update(piece_parts)
        return value, parts

    def _require_finite(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        self._optimizer.zero_grad(set_to_none=True)
        raise SeawallError(
            f"the {what} is not finite at step {self.steps + 1}",
            got=value,
            remedy=f"lower the learning rate (now {self._settings.lr:g}), or load the model in float32 or bfloat16",
        )

    def state(self) -> dict[str, Tensor]:
        """The state for a checkpoint: the optimizer's moments, as `KEY/PARAMETER`, and the step count."""
        tensors = {
            f"{key}/{name}": value
            for name, parameter in self._parameters.items()
            for key, value in saved_state(self._optimizer, parameter).items()
        }
        return {"steps": torch.tensor(self.steps), **tensors}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Loads a state of `state`; training then continues as if uninterrupted."""
        self.steps = int(tensors["steps"])
        for name, parameter in self._parameters.items():
            keys = [key for key in tensors if key.partition("/")[2] == name]
            if keys:
                saved = {key.partition("/")[0]: tensors[key] for key in keys}
                restore_state(self._optimizer, parameter, saved)


def random_state() -> dict[str, Tensor]:
    """The state of torch's random generators, for a checkpoint; dropout depends on it."""
    devices = torch.cuda.get_rng_state_all()
    return {"cpu": torch.get_rng_state(), **{f"cuda:{index}": state for index, state in enumerate(devices)}}


def set_random_state(tensors: Mapping[str, Tensor]) -> None:
    """Restores a state of `random_state`; states of missing devices are ignored."""
    torch.set_rng_state(tensors["cpu"].cpu())
    for index in range(torch.cuda.device_count()):
        if f"cuda:{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda:{index}"].cpu(), index)

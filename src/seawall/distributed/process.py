"""Processes: one for a repair, which trains little; as many as were launched for fine-tuning.

A model that is too large for one device is spread by its device map.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch.distributed
from accelerate import Accelerator, PartialState
from accelerate.utils import GradientAccumulationPlugin

from seawall.errors import ConfigError

_PATIENCE = timedelta(days=7)
"""The first process may evaluate for hours while the others wait for its next order."""


def one_process() -> Accelerator:
    """The accelerator of this process.

    Precision is decided by the model's weights and the float32 copies that train, so settings that `accelerate config`
    left in the environment (mixed precision, gradient accumulation) are not taken up: they would change the numbers.

    Raises:
        ConfigError: several processes were launched; each would train the whole and write the same files.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise ConfigError(
            "seawall runs in one process",
            got=f"{processes} processes",
            expected="one",
            remedy="start it without accelerate launch or torchrun; model.device: auto uses what the machine has",
        )
    return Accelerator(mixed_precision="no", gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1))


@dataclass(frozen=True)
class Processes:
    """The processes of one launch. The first one works; the others wait for its orders, and train with it.

    Attributes:
        rank: of this one; the first is 0.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1
    _group: Any = field(default=None, repr=False)

    @property
    def first(self) -> bool:
        """Whether this is the one that works alone and writes."""
        return self.rank == 0

    def order(self, order: list[Any] | None) -> None:
        """Tell the others what to do now, with this one; None lets them go. Nothing where there are no others."""
        if self.first and self.count > 1:
            self._broadcast([order])

    def await_order(self) -> list[Any] | None:
        """Wait for what the first one says; None is the end."""
        received: list[Any] = [None]
        self._broadcast(received)
        order: list[Any] | None = received[0]
        return order

    def _broadcast(self, box: list[Any]) -> None:
        torch.distributed.broadcast_object_list(box, src=0, group=self._group)


def launched(*, device: str) -> Processes:
    """The processes that `accelerate launch` or `torchrun` started; one where none did.

    Args:
        device: `model.device`.

    Raises:
        ConfigError: several processes, and a device that all of them would share.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    if device not in ("auto", "cpu"):
        raise ConfigError(
            "several processes were launched, and all would use one device",
            got=f"model.device={device}",
            expected="auto, which gives each its own, or cpu",
        )
    state = PartialState(cpu=device == "cpu", timeout=_PATIENCE)
    group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
    return Processes(int(state.process_index), int(state.num_processes), group)

"""Processes: one for a repair, which trains few parameters; all launched ones for fine-tuning.

A device map spreads a model that is too large for one device.
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
"""Timeout of the other processes, which wait while the first one may evaluate for hours."""


def one_process() -> Accelerator:
    """The accelerator of this process.

    Settings of `accelerate config` in the environment (mixed precision, gradient accumulation) are ignored, because
    they would change the numbers: the model's weights and the float32 copies determine the precision.

    Raises:
        ConfigError: several processes were launched; each would train the same model and write the same files.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise ConfigError(
            "this command runs in one process",
            got=f"{processes} processes",
            expected="one",
            remedy="start seawall without accelerate launch or torchrun; model.device: auto uses all devices",
        )
    return Accelerator(mixed_precision="no", gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1))


@dataclass(frozen=True)
class Processes:
    """The processes of one launch. The first one works; the others wait for its orders, and train together with it.

    Attributes:
        rank: rank of this process; the first is 0.
        count: number of processes.
    """

    rank: int = 0
    count: int = 1
    _group: Any = field(default=None, repr=False)

    @property
    def first(self) -> bool:
        """Whether this is the first process, which works alone and writes files."""
        return self.rank == 0

    def order(self, order: list[Any] | None) -> None:
        """Sends an order to the other processes, if there are any; None ends them."""
        if self.first and self.count > 1:
            self._broadcast([order])

    def await_order(self) -> list[Any] | None:
        """Waits for the first process's order; None means to end."""
        received: list[Any] = [None]
        self._broadcast(received)
        order: list[Any] | None = received[0]
        return order

    def _broadcast(self, box: list[Any]) -> None:
        torch.distributed.broadcast_object_list(box, src=0, group=self._group)


def launched(*, device: str) -> Processes:
    """The processes of `accelerate launch` or `torchrun`; a single one without a launcher.

    Args:
        device: `model.device` of the recipe.

    Raises:
        ConfigError: several processes would share one device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    if device not in ("auto", "cpu"):
        raise ConfigError(
            "several processes would share one device",
            got=f"model.device={device}",
            expected="auto, which gives each process its own device, or cpu",
        )
    state = PartialState(cpu=device == "cpu", timeout=_PATIENCE)
    group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
    return Processes(int(state.process_index), int(state.num_processes), group)

"""The processes of a launch that make every update together: `train.loop.Peers` over gloo or NCCL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from seawall.distributed.process import Processes


@final
@dataclass(frozen=True)
class LaunchPeers:
    """The processes that make the updates of one training together; gradients and losses are summed over them.

    Attributes:
        processes: of the launch.
        update: the order, without the batch, by which the first process tells the others to make an update.
    """

    processes: Processes
    update: tuple[Any, ...]

    def begin(self, batch: object) -> None:
        """Orders the update from the other processes; nothing in these themselves."""
        self.processes.order([*self.update, batch])

    def totals(self, value: float, parts: Mapping[str, float]) -> tuple[float, Mapping[str, float]]:
        """The sums over all processes, in the order of ranks."""
        shares = self.processes.gather_everywhere((value, dict(parts)))
        names = dict.fromkeys(name for _, terms in shares for name in terms)
        return sum(share for share, _ in shares), {
            name: sum(terms.get(name, 0.0) for _, terms in shares) for name in names
        }

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums the gradients; AdamW leaves a parameter without a gradient as it is, so such a parameter gets none."""
        trained = list(parameters)
        flags = self.processes.gather_everywhere([parameter.grad is not None for parameter in trained])
        moving = [
            parameter for parameter, present in zip(trained, zip(*flags, strict=True), strict=True) if any(present)
        ]
        for parameter in moving:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.processes.sum_in_place([parameter.grad for parameter in moving if parameter.grad is not None])

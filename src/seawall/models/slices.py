"""Some slices of a tensor, such as a few experts of a stack, without the rest of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Slices(NamedTuple):
    """Slices of a tensor along dimension 0, or the full tensor.

    Attributes:
        indices: of the slices, ascending; None for the full tensor.
        tensor: these slices, in their order.
    """

    indices: tuple[int, ...] | None
    tensor: Tensor

    @classmethod
    def copied(cls, tensor: Tensor, indices: tuple[int, ...] | None) -> Slices:
        """A copy of these slices of a full tensor."""
        return cls(indices, tensor.clone() if indices is None else tensor[list(indices)])

    @torch.no_grad()
    def write(self, full: Tensor) -> None:
        """Writes the slices into a full tensor, in place."""
        if self.indices is None:
            full.copy_(self.tensor)
        else:
            positions = torch.tensor(self.indices, dtype=torch.int64, device=full.device)
            full.index_copy_(0, positions, self.tensor.to(full.device))


def full_slices(tensors: Mapping[str, Tensor]) -> dict[str, Slices]:
    """Full tensors as slices."""
    return {name: Slices(None, tensor) for name, tensor in tensors.items()}

"""Batches of encoded conversations: similar lengths together, order fixed by a seed, padding masked.

Legend: B rows of the batch, T tokens of its longest row.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from seawall.data.templating import IGNORED, Encoded

Side = Literal["left", "right"]

_WINDOW = 16
"""Number of batches whose rows are sorted by length together: enough to save padding, few enough to stay shuffled."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one forward pass. Padding has attention mask 0 and label -100."""

    input_ids_BT: Int[Tensor, "B T"]
    attention_mask_BT: Int[Tensor, "B T"]
    labels_BT: Int[Tensor, "B T"]

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        return Batch(self.input_ids_BT.to(device), self.attention_mask_BT.to(device), self.labels_BT.to(device))


def collate(encoded: Sequence[Encoded], pad_id: int, *, side: Side = "right") -> Batch:
    """A batch of rows padded to the longest: on the right for training, on the left for generation."""
    assert encoded, "a batch has at least one row"
    width = max(len(row.input_ids) for row in encoded)
    return Batch(
        _padded([row.input_ids for row in encoded], pad_id, width=width, side=side),
        _padded([[1] * len(row.input_ids) for row in encoded], 0, width=width, side=side),
        _padded([row.labels for row in encoded], IGNORED, width=width, side=side),
    )


def length_buckets(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices of `lengths` in batches of at most `batch_size`, longest first, so that memory runs out at once or never.

    Equal lengths keep their order.
    """
    return _chunks(sorted(range(len(lengths)), key=lambda index: -lengths[index]), batch_size)


def epoch_batches(lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Indices of `lengths` in the batches of one epoch: each index once, shuffled, similar lengths together.

    The order depends on seed and epoch alone, so a resumed run repeats the same batches.
    """
    generator = random.Random(f"seawall epoch {epoch} of seed {seed}")
    order = list(range(len(lengths)))
    generator.shuffle(order)
    windows = _chunks(order, batch_size * _WINDOW)
    batches = [
        batch for window in windows for batch in _chunks(sorted(window, key=lambda index: -lengths[index]), batch_size)
    ]
    generator.shuffle(batches)
    return batches


def _chunks(positions: Sequence[int], size: int) -> list[list[int]]:
    assert size > 0
    return [list(positions[start : start + size]) for start in range(0, len(positions), size)]


def _padded(rows: Sequence[Sequence[int]], filler: int, *, width: int, side: Side) -> Tensor:
    if side == "left":
        return torch.tensor([[filler] * (width - len(row)) + list(row) for row in rows])
    return torch.tensor([list(row) + [filler] * (width - len(row)) for row in rows])

"""The share of an adapter's update that a merged checkpoint holds, read from the files of both, part by part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from seawall.models.files.stream import CheckpointOutline, Part, WeightReader, matrices, outline, reading
from seawall.models.lora.merge import adapter_factors
from seawall.models.lora.merged import survival
from seawall.models.lora.updates import LowRankUpdate

_HALF = (torch.bfloat16, torch.float16)


class StoredUpdate(NamedTuple):
    """Survival of an update in stored weights (`MergeFidelity.survival`), and whether a 16-bit type rounded it."""

    survival: float
    rounded: bool


def stored_update(before: CheckpointOutline, after: CheckpointOutline, adapter: Path) -> StoredUpdate:
    """Compares the change between two checkpoints with the update of the adapter that was merged.

    Memory holds one tensor or expert slice of each checkpoint, and its update.

    Args:
        before: the checkpoint without the adapter.
        after: the merged checkpoint, of the same layout.
        adapter: folder of the adapter.

    Raises:
        SeawallError: a file is damaged, or the adapter is not plain LoRA of this model.
    """
    # adapter_factors inserts modules into the model, so it gets a separate outline.
    updates = {update.name: update for update in adapter_factors(outline(before.folder).model, adapter)}
    transposed = {name for name, matrix in matrices(before.model).items() if matrix.transposed}
    types: set[torch.dtype] = set()

    def changes() -> Iterator[tuple[Tensor, Tensor]]:
        with reading(before) as reader, reading(after) as merged:
            for part in before.sources:
                if part.name in updates or before.cut(part):
                    yield from _changes(part, (reader, merged), updates, transposed, types)

    return StoredUpdate(survival(changes()), any(dtype in _HALF for dtype in types))


def _changes(
    part: Part,
    readers: tuple[WeightReader, WeightReader],
    updates: dict[str, LowRankUpdate],
    transposed: set[str],
    types: set[torch.dtype],
) -> Iterator[tuple[Tensor, Tensor]]:
    own, merged = (reader.read(part) for reader in readers)
    for name in sorted(own.keys() & updates.keys()):
        types.add(merged[name].dtype)
        intended = updates[name].product(part.expert)
        yield merged[name].float() - own[name].float(), intended.mT if name in transposed else intended

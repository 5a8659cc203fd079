"""The original routing of the training sequences, for an expert step under replayed routing.

Legend: B rows, T tokens of a row, L MoE layers, K places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from seawall.data.batching import collate, length_buckets
from seawall.data.templating import Encoded
from seawall.models.capture import RoutingTrace, capture
from seawall.models.find import MoEModel
from seawall.repair.forward import run


@dataclass(frozen=True)
class RowRouting:
    """Routing of one token sequence, without padding, on the CPU: per MoE layer (T, K)."""

    indices: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]


@final
class RecordedRouting:
    """Where a model sent the tokens of some rows when this was made."""

    def __init__(self, moe: MoEModel, rows: Sequence[Encoded], pad_id: int, *, batch_size: int) -> None:
        self._moe = moe
        self._rows: dict[int, RowRouting] = {}
        for positions in length_buckets([len(row.input_ids) for row in rows], batch_size):
            batch = collate([rows[at] for at in positions], pad_id, side="left")
            with torch.no_grad(), capture(moe) as trace:
                run(moe, batch, keep=1)
            shape = batch.input_ids_BT.shape
            for at, start, routed in zip(positions, _starts(batch.attention_mask_BT), range(shape[0]), strict=True):
                self._rows[at] = RowRouting(
                    tuple(t.view(*shape, -1)[routed, start:].to("cpu", torch.int32) for t in trace.indices),
                    tuple(t.view(*shape, -1)[routed, start:].to("cpu", copy=True) for t in trace.weights),
                )

    def trace(self, positions: Sequence[int]) -> RoutingTrace:
        """The routing of these rows as one left-padded batch. Padding goes to the first experts with weight 0."""
        rows = [self._rows[at] for at in positions]
        width = max(len(row.indices[0]) for row in rows)
        found = RoutingTrace(self._moe.num_layers, self._moe.num_experts)
        for layer in range(self._moe.num_layers):
            found.indices.append(torch.cat([_padded_indices(row.indices[layer], width) for row in rows]))
            found.weights.append(torch.cat([_padded(row.weights[layer], width) for row in rows]))
        return found


def _starts(mask_BT: Tensor) -> list[int]:
    """Where each left-padded row begins."""
    return [int(start) for start in (mask_BT.shape[1] - mask_BT.sum(1)).tolist()]


def _padded(tensor_TK: Tensor, width: int) -> Tensor:
    return torch.cat([tensor_TK.new_zeros(width - len(tensor_TK), tensor_TK.shape[1]), tensor_TK])


def _padded_indices(indices_TK: Tensor, width: int) -> Tensor:
    """Different experts for a padded token's K places: no family is asked to send one token to one expert twice."""
    places_TK = torch.arange(indices_TK.shape[1]).expand(width - len(indices_TK), -1)
    return torch.cat([places_TK, indices_TK.long()])

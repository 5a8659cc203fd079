"""The routing of token sequences, one by one: taken from a padded batch, and put together as another one.

Legend: B rows, T tokens of a row, L MoE layers, K places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from seawall.models.capture import RoutingTrace


@dataclass(frozen=True)
class RowRouting:
    """Routing of one token sequence, without padding, on the CPU: per MoE layer (T, K)."""

    indices: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]


def rows_of(trace: RoutingTrace, mask_BT: Tensor) -> Iterator[RowRouting]:
    """The routing of every row of a left-padded batch."""
    shape = mask_BT.shape
    for row, tokens in enumerate(mask_BT.sum(1).tolist()):
        kept = slice(shape[1] - int(tokens), None)
        yield RowRouting(
            tuple(layer.view(*shape, -1)[row, kept].to("cpu", torch.int32) for layer in trace.indices),
            tuple(layer.view(*shape, -1)[row, kept].to("cpu", copy=True) for layer in trace.weights),
        )


def trace_of(rows: Sequence[RowRouting], *, num_experts: int) -> RoutingTrace:
    """Rows as one left-padded batch. Padding goes to the first experts with weight 0."""
    layers = range(len(rows[0].indices))
    width = max(len(row.indices[0]) for row in rows)
    found = RoutingTrace(len(layers), num_experts)
    for layer in layers:
        found.indices.append(torch.cat([_padded_indices(row.indices[layer], width) for row in rows]))
        found.weights.append(torch.cat([_padded(row.weights[layer], width) for row in rows]))
    return found


def _padded(tensor_TK: Tensor, width: int) -> Tensor:
    return torch.cat([tensor_TK.new_zeros(width - len(tensor_TK), tensor_TK.shape[1]), tensor_TK])


def _padded_indices(indices_TK: Tensor, width: int) -> Tensor:
    """Different experts for a padded token's K places: no family is asked to send one token to one expert twice."""
    places_TK = torch.arange(indices_TK.shape[1]).expand(width - len(indices_TK), -1)
    return torch.cat([places_TK, indices_TK.long()])

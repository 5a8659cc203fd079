"""What the unrepaired model does with the rows of a repair, from one forward pass over each.

Legend: B rows, T tokens of the batch's responses, R response tokens of one row, K likeliest tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seawall.data.batching import Batch, collate, length_buckets
from seawall.data.templating import Encoded
from seawall.models.forward import run
from seawall.models.hidden.residual import capture_residual
from seawall.models.moe.capture import RoutingTrace, capture
from seawall.models.moe.find import MoEModel

LIKELIEST = 64
"""Tokens kept per position; what is left of the probability counts as one more outcome."""


@dataclass(frozen=True)
class LikeliestTokens:
    """The likeliest next tokens at every response position of some rows, aligned at the end."""

    tokens_BTK: Int[Tensor, "B T K"]
    log_probability_BTK: Float[Tensor, "B T K"]


@final
class Original:
    """Routing, next-token distributions and hidden states of a model, as it was when this was made.

    Kept on the CPU: for the routing, L x K x 8 bytes for each token at most; for the predictions, LIKELIEST x 8 bytes
    for each response token; for the hidden states, D numbers for each token.

    Args:
        moe: the model.
        rows: all rows.
        pad_id: any token; it is masked.
        batch_size: rows of a forward pass.
        routed: positions of the rows whose routing is kept, for `trace`.
        predicted: positions of the rows whose predictions are kept, for `predictions`.
        entry: decoder layer whose input is kept for all rows, for `hidden`; 0 keeps none, since it is the embedding.
    """

    def __init__(
        self,
        moe: MoEModel,
        rows: Sequence[Encoded],
        pad_id: int,
        *,
        batch_size: int,
        routed: Collection[int] = (),
        predicted: Collection[int] = (),
        entry: int = 0,
    ) -> None:
        self._moe = moe
        self._routing: dict[int, RowRouting] = {}
        self._likeliest: dict[int, LikeliestTokens] = {}
        self._hidden: dict[int, Tensor] = {}
        needed = range(len(rows)) if entry else sorted({*routed, *predicted})
        layers = [entry] if entry else []
        for bucket in length_buckets([len(rows[at].input_ids) for at in needed], batch_size):
            positions = [needed[at] for at in bucket]
            batch = collate([rows[at] for at in positions], pad_id, side="left")
            responses = [rows[at].response_tokens if at in predicted else 0 for at in positions]
            with torch.no_grad(), capture_residual(moe.model, layers) as inputs:
                with capture(moe) if routed else nullcontext(RoutingTrace(0, 0)) as trace:
                    logits_BTV = run(moe, batch, keep=max(responses) + 1)
            self._keep_routing(positions, batch, trace, routed)
            for layer in layers:
                self._keep_hidden(positions, batch, inputs.inputs[layer])
            self._keep_predictions(positions, responses, logits_BTV[:, :-1])

    def trace(self, positions: Sequence[int]) -> RoutingTrace:
        """The routing of these rows as one left-padded batch."""
        return trace_of([self._routing[at] for at in positions], num_experts=self._moe.num_experts)

    def predictions(self, positions: Sequence[int], *, width: int) -> LikeliestTokens:
        """These rows as one batch of `width` response positions; those before a row's response hold zeros."""
        rows = [self._likeliest[at] for at in positions]
        return LikeliestTokens(
            torch.stack([_padded(row.tokens_BTK, width) for row in rows]).long(),
            torch.stack([_padded(row.log_probability_BTK, width) for row in rows]),
        )

    def hidden(self, positions: Sequence[int]) -> Float[Tensor, "B T D"]:
        """The inputs of the entry layer for these rows, as one left-padded batch; padding is zero."""
        rows = [self._hidden[at] for at in positions]
        return torch.stack([_padded(row, max(map(len, rows))) for row in rows])

    def _keep_hidden(self, positions: Sequence[int], batch: Batch, hidden_BTD: Tensor) -> None:
        for at, tokens, hidden_TD in zip(positions, batch.attention_mask_BT.sum(1).tolist(), hidden_BTD, strict=True):
            self._hidden[at] = hidden_TD[len(hidden_TD) - int(tokens) :].to("cpu", copy=True)

    def _keep_routing(
        self, positions: Sequence[int], batch: Batch, trace: RoutingTrace, routed: Collection[int]
    ) -> None:
        if routed:
            found = zip(positions, rows_of(trace, batch.attention_mask_BT), strict=True)
            self._routing |= {at: row for at, row in found if at in routed}

    def _keep_predictions(self, positions: Sequence[int], responses: Sequence[int], logits_BTV: Tensor) -> None:
        for at, count, logits_TV in zip(positions, responses, logits_BTV, strict=True):
            if count:
                top = logits_TV[-count:].float().log_softmax(-1).topk(min(LIKELIEST, logits_TV.shape[-1]), dim=-1)
                self._likeliest[at] = LikeliestTokens(
                    top.indices.to("cpu", torch.int32), top.values.to("cpu", copy=True)
                )


def _padded(tensor_RK: Tensor, width: int) -> Tensor:
    return torch.cat([tensor_RK.new_zeros(width - len(tensor_RK), tensor_RK.shape[1]), tensor_RK])


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


def _padded_indices(indices_TK: Tensor, width: int) -> Tensor:
    """Different experts for a padded token's K places: no family is asked to send one token to one expert twice."""
    places_TK = torch.arange(indices_TK.shape[1]).expand(width - len(indices_TK), -1)
    return torch.cat([places_TK, indices_TK.long()])

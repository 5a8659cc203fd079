"""Outputs of the unrepaired model on the rows of a repair, from one forward pass over each.

Legend: B rows, T tokens of the batch's responses, R response tokens of one row, K top tokens, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seawall.data.batching import Batch, collate, length_buckets
from seawall.data.templating import Encoded
from seawall.distributed.process import ALONE, Processes
from seawall.models.backoff import in_buckets
from seawall.models.forward import run
from seawall.models.hidden.enter_at_layer import only_below
from seawall.models.hidden.residual import capture_residual
from seawall.models.moe.capture import RoutingTrace, capture
from seawall.models.moe.find import MoEModel
from seawall.models.sharding import is_sharded

TOP_TOKENS = 64
"""Tokens stored per position; the remaining probability counts as one more outcome."""


@dataclass(frozen=True)
class TopTokens:
    """The most likely next tokens at every response position of some rows, aligned at the end."""

    tokens_BTK: Int[Tensor, "B T K"]
    log_probability_BTK: Float[Tensor, "B T K"]


@final
class OriginalOutputs:
    """Routing, next-token distributions and hidden states of a model, recorded when this object is made.

    Stored on the CPU: routing takes at most L x K x 8 bytes per token, predictions TOP_TOKENS x 8 bytes per response
    token, hidden states D numbers per token. A row of which hidden states alone are needed does not run the layers from
    `entry` on.

    Args:
        moe: the model.
        rows: all rows.
        pad_id: a token to pad with; padding is masked.
        batch_size: rows of a forward pass.
        routed: positions of the rows whose routing is recorded, for `trace`.
        predicted: positions of the rows whose predictions are recorded, for `predictions`.
        entry: decoder layer whose input is recorded for all rows, for `hidden`; 0, the embedding, records none.
        processes: each computes some of the batches, and all hold the outputs of all.
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
        processes: Processes = ALONE,
    ) -> None:
        self._moe = moe
        self._pad_id, self._batch_size, self._entry = pad_id, batch_size, entry
        self._routing: dict[int, RowRouting] = {}
        self._top_tokens: dict[int, TopTokens] = {}
        self._hidden: dict[int, Tensor] = {}
        through = sorted({*routed, *predicted})
        below = sorted(set(range(len(rows))).difference(through)) if entry else []
        layers = [entry] if entry else []

        def record(positions: list[int]) -> None:
            """Of rows that go through the whole model."""
            batch = collate([rows[position] for position in positions], pad_id, side="left")
            responses = [rows[position].response_tokens if position in predicted else 0 for position in positions]
            with torch.no_grad(), capture_residual(moe.model, layers) as inputs:
                with capture(moe) if routed else nullcontext(RoutingTrace(0, 0)) as trace:
                    logits_BTV = run(moe, batch, keep=max(responses) + 1)
            self._record_routing(positions, batch, trace, routed)
            for layer in layers:
                self._record_hidden(positions, batch, inputs.inputs[layer])
            self._record_predictions(positions, responses, logits_BTV[:, :-1])

        buckets = self._buckets(rows, through)
        own = buckets[processes.rank :: processes.count]
        if is_sharded(moe.model):
            # Equally many passes in all processes, none of which may try again alone; a row is recorded twice at most.
            missing = len(own) < math.ceil(len(buckets) / processes.count)
            for bucket in [*own, *(buckets[-1:] if missing else ())]:
                record(bucket)
        else:
            for _ in in_buckets(own, record):
                pass
            self._record_below(rows, self._buckets(rows, below)[processes.rank :: processes.count])
        records: tuple[dict[int, Any], ...] = (self._routing, self._top_tokens, self._hidden)
        for shares in processes.gather_everywhere(records):
            for outputs, share in zip(records, shares, strict=True):
                outputs.update(share)

    def record_hidden_again(self, rows: Sequence[Encoded]) -> None:
        """Records the inputs of the entry layer anew, on the current model; the layers from there on do not run."""
        self._record_below(rows, self._buckets(rows, range(len(rows))))

    def _buckets(self, rows: Sequence[Encoded], positions: Sequence[int]) -> list[list[int]]:
        """These positions by forward pass, rows of similar lengths together."""
        lengths = [len(rows[position].input_ids) for position in positions]
        return [[positions[index] for index in bucket] for bucket in length_buckets(lengths, self._batch_size)]

    def _record_below(self, rows: Sequence[Encoded], buckets: Sequence[list[int]]) -> None:
        """Records the inputs of the entry layer for these passes, whose layers from there on do not run."""

        def record(positions: list[int]) -> None:
            batch = collate([rows[position] for position in positions], self._pad_id, side="left")
            with torch.no_grad(), only_below(self._moe.model, self._entry):
                with capture_residual(self._moe.model, [self._entry]) as inputs:
                    run(self._moe, batch, keep=1)
            self._record_hidden(positions, batch, inputs.inputs[self._entry])

        for _ in in_buckets(buckets, record):
            pass

    def trace(self, positions: Sequence[int]) -> RoutingTrace:
        """The routing of these rows as one left-padded batch."""
        return trace_of([self._routing[position] for position in positions], num_experts=self._moe.num_experts)

    def predictions(self, positions: Sequence[int], *, width: int) -> TopTokens:
        """Predictions of these rows as one batch of `width` response positions, zero before a row's response."""
        rows = [self._top_tokens[position] for position in positions]
        return TopTokens(
            torch.stack([_padded(row.tokens_BTK, width) for row in rows]).long(),
            torch.stack([_padded(row.log_probability_BTK, width) for row in rows]),
        )

    def hidden(self, positions: Sequence[int]) -> Float[Tensor, "B T D"]:
        """Inputs of the entry layer for these rows as one left-padded batch; padding is zero."""
        rows = [self._hidden[position] for position in positions]
        return torch.stack([_padded(row, max(map(len, rows))) for row in rows])

    def _record_hidden(self, positions: Sequence[int], batch: Batch, hidden_BTD: Tensor) -> None:
        for position, tokens, hidden_TD in zip(
            positions, batch.attention_mask_BT.sum(1).tolist(), hidden_BTD, strict=True
        ):
            self._hidden[position] = hidden_TD[len(hidden_TD) - int(tokens) :].to("cpu", copy=True)

    def _record_routing(
        self, positions: Sequence[int], batch: Batch, trace: RoutingTrace, routed: Collection[int]
    ) -> None:
        if routed:
            pairs = zip(positions, rows_of(trace, batch.attention_mask_BT), strict=True)
            self._routing |= {position: row for position, row in pairs if position in routed}

    def _record_predictions(self, positions: Sequence[int], responses: Sequence[int], logits_BTV: Tensor) -> None:
        for position, count, logits_TV in zip(positions, responses, logits_BTV, strict=True):
            if count:
                top = logits_TV[-count:].float().log_softmax(-1).topk(min(TOP_TOKENS, logits_TV.shape[-1]), dim=-1)
                self._top_tokens[position] = TopTokens(
                    top.indices.to("cpu", torch.int32), top.values.to("cpu", copy=True)
                )


def _padded(tensor_RK: Tensor, width: int) -> Tensor:
    return torch.cat([tensor_RK.new_zeros(width - len(tensor_RK), tensor_RK.shape[1]), tensor_RK])


@dataclass(frozen=True)
class RowRouting:
    """Routing of one token sequence without padding, on the CPU: (T, K) per MoE layer."""

    indices: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]


def rows_of(trace: RoutingTrace, mask_BT: Tensor) -> Iterator[RowRouting]:
    """The routing of each row of a left-padded batch."""
    shape = mask_BT.shape
    for row, tokens in enumerate(mask_BT.sum(1).tolist()):
        tokens_T = slice(shape[1] - int(tokens), None)
        yield RowRouting(
            tuple(layer.view(*shape, -1)[row, tokens_T].to("cpu", torch.int32) for layer in trace.indices),
            tuple(layer.view(*shape, -1)[row, tokens_T].to("cpu", copy=True) for layer in trace.weights),
        )


def trace_of(rows: Sequence[RowRouting], *, num_experts: int) -> RoutingTrace:
    """Rows as one left-padded batch. Padding is routed to the first experts with weight 0."""
    layers = range(len(rows[0].indices))
    width = max(len(row.indices[0]) for row in rows)
    batch_trace = RoutingTrace(len(layers), num_experts)
    for layer in layers:
        batch_trace.indices.append(torch.cat([_padded_indices(row.indices[layer], width) for row in rows]))
        batch_trace.weights.append(torch.cat([_padded(row.weights[layer], width) for row in rows]))
    return batch_trace


def _padded_indices(indices_TK: Tensor, width: int) -> Tensor:
    """K different experts for each padding token: families may not accept one expert twice for a token."""
    padding_TK = torch.arange(indices_TK.shape[1]).expand(width - len(indices_TK), -1)
    return torch.cat([padding_TK, indices_TK.long()])

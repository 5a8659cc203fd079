"""Routing counts of prompts and replies, from one teacher-forced pass over prompt + reply.

The model is causal, so up to rounding a token is routed in this pass as it was in generation. The last generated token
is counted too, although generation never feeds it back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from seawall.data.batching import collate, length_buckets
from seawall.data.templating import Encoded
from seawall.methods.rasa.profiling.pairs import JudgedPair
from seawall.models.forward import contiguous_output_layer
from seawall.models.generate import Completion, TokenIds
from seawall.models.moe.capture import capture, routing_counts_by_row
from seawall.models.moe.find import MoEModel
from seawall.models.replicas import shared_buckets

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Counts:
    """Routing of P replies.

    Attributes:
        tokens_P: number of tokens counted.
        counts_PLE: number of tokens with the expert in their top-k.
        mass_PLE: sum of the expert's gate weights.
    """

    tokens_P: Float[Tensor, " P"]
    counts_PLE: Float[Tensor, "P L E"]
    mass_PLE: Float[Tensor, "P L E"]

    @classmethod
    def zeros(cls, rows: int, moe: MoEModel) -> Counts:
        """Counts of no token."""
        shape = (rows, moe.num_layers, moe.num_experts)
        return cls(torch.zeros(rows), torch.zeros(shape), torch.zeros(shape))

    def named(self, side: str, positions: Sequence[int]) -> dict[str, Tensor]:
        """The counts of these replies, by their names in a profile."""
        rows = list(positions)
        return {
            f"{side}_tokens_P": self.tokens_P[rows],
            f"{side}_counts_PLE": self.counts_PLE[rows],
            f"{side}_mass_PLE": self.mass_PLE[rows],
        }


def count_pairs(
    moe: MoEModel, pairs: Sequence[JudgedPair], *, batch_size: int, progress: Progress | None = None
) -> dict[str, Tensor]:
    """The tensors of a profile: counts over prompt and generated tokens of both sides, one row per pair.

    A plain request that several attacks wrap has one reply, which is counted once. On disk its side is `anchor`.
    """
    sides = {"attack": [item.attack for item in pairs], "anchor": [item.plain for item in pairs]}
    replies = list(dict.fromkeys(reply for side in sides.values() for reply in side))
    row_of = {reply: row for row, reply in enumerate(replies)}
    prompt, generated = count_routing(moe, replies, batch_size=batch_size, progress=progress)
    tensors: dict[str, Tensor] = {}
    for side, of_pairs in sides.items():
        positions = [row_of[reply] for reply in of_pairs]
        tensors |= generated.named(side, positions) | prompt.named(f"{side}_prompt", positions)
    return tensors


def count_routing(
    moe: MoEModel, replies: Sequence[Completion], *, batch_size: int, progress: Progress | None = None
) -> tuple[Counts, Counts]:
    """(counts over prompt tokens, counts over generated tokens), in the order of `replies`.

    Where the model has copies in other processes, each counts some of the batches.
    """
    prompt, generated = Counts.zeros(len(replies), moe), Counts.zeros(len(replies), moe)
    buckets = length_buckets([len(reply.prompt_ids) + len(reply.token_ids) for reply in replies], batch_size)
    count = 0

    def items_of(positions: list[int]) -> list[tuple[TokenIds, TokenIds]]:
        return [(replies[position].prompt_ids, replies[position].token_ids) for position in positions]

    for positions, counted in shared_buckets(moe, _count_batch, items_of, buckets):
        for counts, of_batch in zip((prompt, generated), counted, strict=True):
            counts.tokens_P[positions] = of_batch.tokens_P
            counts.counts_PLE[positions] = of_batch.counts_PLE
            counts.mass_PLE[positions] = of_batch.mass_PLE
        count += len(positions)
        if progress is not None:
            progress(count, len(replies))
    return prompt, generated


def _count_batch(moe: MoEModel, replies: Sequence[tuple[TokenIds, TokenIds]]) -> tuple[Counts, Counts]:
    """The counts of some replies, each given as (prompt, generated tokens)."""
    device, rows = moe.model.device, [[*prompt_ids, *token_ids] for prompt_ids, token_ids in replies]
    batch = collate([Encoded(ids, ids) for ids in rows], pad_id=0).to(device)
    with torch.no_grad(), contiguous_output_layer(moe.model), capture(moe) as trace:
        moe.model(
            input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False, logits_to_keep=1
        )
    column_T = torch.arange(batch.input_ids_BT.shape[1], device=device)
    is_prompt_BT = column_T < torch.tensor([len(prompt_ids) for prompt_ids, _ in replies], device=device)[:, None]
    real_BT = batch.attention_mask_BT.bool()
    row_ids_T = torch.arange(len(rows), device=device).repeat_interleave(len(column_T))

    def counts(mask_BT: Tensor) -> Counts:
        counts_PLE, mass_PLE = routing_counts_by_row(trace, mask_BT.flatten(), row_ids_T, num_rows=len(rows))
        return Counts(mask_BT.sum(1).float().cpu(), counts_PLE.float().cpu(), mass_PLE.float().cpu())

    return counts(real_BT & is_prompt_BT), counts(real_BT & ~is_prompt_BT)

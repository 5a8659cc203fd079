"""Routing counts of prompts and replies, from one teacher-forced pass over prompt + reply.

The model is causal, so a token is routed the same way in this pass as when it was generated, up to rounding. The last
generated token is counted although generation itself never fed it back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from seawall.data.batching import collate, length_buckets
from seawall.data.templating import Encoded
from seawall.models.capture import capture, routing_counts_by_row
from seawall.models.find import MoEModel
from seawall.models.generate import Completion


@dataclass(frozen=True)
class Counts:
    """Routing of P replies; `tokens` are the tokens counted, `counts` how often each expert was in their top-k."""

    tokens_P: Float[Tensor, " P"]
    counts_PLE: Float[Tensor, "P L E"]
    mass_PLE: Float[Tensor, "P L E"]


def count_routing(
    moe: MoEModel,
    completions: Sequence[Completion],
    *,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Counts, Counts]:
    """(counts over prompt tokens, counts over generated tokens), in the order of `completions`."""
    shape = (len(completions), moe.num_layers, moe.num_experts)
    totals = [Counts(torch.zeros(shape[0]), torch.zeros(shape), torch.zeros(shape)) for _ in range(2)]
    rows = [[*reply.prompt_ids, *reply.token_ids] for reply in completions]
    done = 0
    for positions in length_buckets([len(row) for row in rows], batch_size):
        batch = collate([Encoded(rows[at], rows[at]) for at in positions], pad_id=0).to(moe.model.device)
        lengths_B = torch.tensor([len(completions[at].prompt_ids) for at in positions], device=moe.model.device)
        column_T = torch.arange(batch.input_ids_BT.shape[1], device=moe.model.device)
        is_prompt_BT = column_T < lengths_B[:, None]
        real_BT = batch.attention_mask_BT.bool()
        with torch.inference_mode(), capture(moe) as trace:
            moe.model(
                input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False, logits_to_keep=1
            )
        row_T = torch.arange(len(positions), device=moe.model.device).repeat_interleave(len(column_T))
        for total, mask_BT in zip(totals, (real_BT & is_prompt_BT, real_BT & ~is_prompt_BT), strict=True):
            counts_PLE, mass_PLE = routing_counts_by_row(trace, mask_BT.flatten(), row_T, num_rows=len(positions))
            total.tokens_P[positions] = mask_BT.sum(1).float().cpu()
            total.counts_PLE[positions] = counts_PLE.float().cpu()
            total.mass_PLE[positions] = mass_PLE.float().cpu()
        done += len(positions)
        if progress is not None:
            progress(done, len(rows))
    return totals[0], totals[1]

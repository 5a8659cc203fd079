"""How far routing moved: what the repair must not achieve its result by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from seawall.data.batching import collate, length_buckets
from seawall.data.templating import Encoded, encode_prompt
from seawall.data.types import Messages
from seawall.models.capture import capture, routing_counts_by_row
from seawall.models.find import MoEModel


def expert_usage(
    moe: MoEModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Messages], *, batch_size: int
) -> Float[Tensor, "P L E"]:
    """Share of each prompt's top-k places that each expert takes; every layer's shares sum to 1."""
    rows = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    usage_PLE = torch.zeros(len(rows), moe.num_layers, moe.num_experts, dtype=torch.float64)
    device = moe.model.device
    for positions in length_buckets([len(row) for row in rows], batch_size):
        batch = collate([Encoded(rows[at], rows[at]) for at in positions], pad_id=0).to(device)
        with torch.inference_mode(), capture(moe) as trace:
            moe.model(
                input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False, logits_to_keep=1
            )
        row_T = torch.arange(len(positions), device=device).repeat_interleave(batch.input_ids_BT.shape[1])
        mask_T = batch.attention_mask_BT.flatten()
        counts_PLE, _ = routing_counts_by_row(trace, mask_T, row_T, num_rows=len(positions))
        usage_PLE[positions] = counts_PLE.cpu() / counts_PLE.cpu().sum(-1, keepdim=True)
    return usage_PLE


def routing_drift(before_PLE: Float[Tensor, "P L E"], after_PLE: Float[Tensor, "P L E"]) -> Float[Tensor, " L"]:
    """Mean total-variation distance of expert usage, per layer: 0 is the same routing, 1 entirely other experts."""
    return (before_PLE - after_PLE).abs().sum(-1).mul(0.5).mean(0)

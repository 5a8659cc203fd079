"""Routing drift: how far a repair moved the routing, which must not be how it achieves its result."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from seawall.data.batching import collate, length_buckets
from seawall.data.templating import Encoded, encode_prompt
from seawall.data.types import Messages
from seawall.models.backoff import in_buckets
from seawall.models.forward import run
from seawall.models.moe.capture import RoutingTrace, capture
from seawall.models.moe.find import MoEModel


def expert_usage(
    moe: MoEModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Messages], *, batch_size: int
) -> Float[Tensor, "T L E"]:
    """Each expert's share of each prompt token's gate weight, on the CPU; the shares of a layer sum to 1.

    T counts the tokens of all prompts, in batches of similar length; the order depends on the prompts alone, not on the
    model's weights.
    """
    rows = [encode_prompt(tokenizer, prompt) for prompt in prompts]

    def shares(positions: list[int]) -> Tensor:
        batch = collate([Encoded(rows[position], rows[position]) for position in positions], pad_id=0)
        with torch.no_grad(), capture(moe) as trace:
            run(moe, batch, keep=1)
        return gate_shares(trace)[batch.attention_mask_BT.flatten().bool()]

    return torch.cat([usage for _, usage in in_buckets(length_buckets(list(map(len, rows)), batch_size), shares)])


def gate_shares(trace: RoutingTrace) -> Float[Tensor, "T L E"]:
    """Each token's gate weights as a distribution over all experts, zero outside its top-k."""
    layers = []
    for indices_TK, weights_TK in zip(trace.indices, trace.weights, strict=True):
        weights_TK = weights_TK.detach().float().cpu()
        dense_TE = torch.zeros(len(weights_TK), trace.num_experts).scatter(1, indices_TK.cpu(), weights_TK)
        layers.append(dense_TE / dense_TE.sum(-1, keepdim=True).clamp_min(1e-12))
    return torch.stack(layers, dim=1)


def routing_drift(before_TLE: Float[Tensor, "T L E"], after_TLE: Float[Tensor, "T L E"]) -> Float[Tensor, " L"]:
    """Mean total-variation distance of the tokens' gate shares, per layer: 0 for the same routing, 1 for disjoint."""
    return (before_TLE - after_TLE).abs().sum(-1).mul(0.5).mean(0)

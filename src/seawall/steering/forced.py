"""Directions of single experts: what an expert alone makes of harmful and of harmless prompts.

Legend: B prompts of a batch, X experts at once, P token positions, D width, L MoE layers, E experts, C = L x E.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from seawall.models.find import MoEModel
from seawall.models.forced import expert_block_outputs
from seawall.steering.target import Prompt, Target, batches, last_logits


def expert_means(
    target: Target,
    moe: MoEModel,
    prompts: Sequence[Prompt],
    positions: Sequence[int],
    advance: Callable[[int], None],
) -> Float[Tensor, "C P D"]:
    """Mean output of each MoE block at these positions if its router chose one expert, for all experts, in float64.

    One forward pass over each prompt serves all experts of all layers.

    Args:
        target: the model.
        moe: its MoE layers.
        prompts: what it is asked.
        positions: counted from a prompt's end.
        advance: told after each pass how many prompts it held.
    """
    width = int(target.model.config.get_text_config().hidden_size)
    shape = (moe.num_layers, moe.num_experts, len(positions), width)
    sums_LEPD = torch.zeros(shape, dtype=torch.float64, device=target.model.device)

    def add(layer: int, experts: tuple[int, ...], outputs_XBPD: Tensor) -> None:
        sums_LEPD[layer, list(experts)] += outputs_XBPD.double().sum(1).to(sums_LEPD.device)

    every = {layer: range(moe.num_experts) for layer in range(moe.num_layers)}
    with expert_block_outputs(moe, every, positions=positions, sink=add):
        for places, batch in batches(prompts, target.batch_size):
            last_logits(target.model, batch)
            advance(len(places))
    return (sums_LEPD / len(prompts)).flatten(0, 1).cpu()

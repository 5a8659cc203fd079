"""Directions that routers do not read, and how much of the routing a change leaves as it was.

Legend: T tokens, D model width, R rows of routers, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float
from torch import Tensor

from seawall.models.hidden.norms import norm_scale, norms_before
from seawall.models.hidden.sublayers import decoder_blocks
from seawall.models.moe.capture import capture
from seawall.models.moe.find import MoELayer, MoEModel

_TOKENS = 6


@torch.no_grad()
def route_preserving(moe: MoEModel, layer: int, direction_D: Float[Tensor, " D"]) -> tuple[Float[Tensor, " D"], int]:
    """The part of a direction in the null space of routers from a decoder layer on (arXiv 2608.21236).

    The rows are those of the routers' weights times the weight of the norm before the MoE block, so that adding the
    result to the residual stream changes no logit of these routers except by the norm's common factor and by what
    layers in between make of it. The nearest routers come first, as long as their rows are at most half of the width.

    Args:
        moe: the model.
        layer: decoder layer at whose input the direction is added.
        direction_D: the direction.

    Returns:
        (the part, the number of routers).
    """
    rows = _router_rows(moe, [row for row in moe.layers if row.decoder_layer >= layer])
    limit = max(1, len(direction_D) // 2 // moe.num_experts)
    if not rows:
        return direction_D, 0
    basis_DR, _ = torch.linalg.qr(torch.cat(rows[:limit]).T)
    wide_D = direction_D.double()
    preserved_D = wide_D - basis_DR @ (basis_DR.T @ wide_D)
    return preserved_D.to(direction_D.dtype), len(rows[:limit])


def _router_rows(moe: MoEModel, layers: list[MoELayer]) -> list[Tensor]:
    """The rows of each router in units of the residual stream (E, D), float64 on the CPU."""
    blocks = decoder_blocks(moe.model)
    pairs = [(blocks[layer.decoder_layer].block, blocks[layer.decoder_layer].mlp) for layer in layers]
    with norms_before(pairs) as norms:
        tokens = torch.arange(1, 1 + _TOKENS, device=moe.model.device) % moe.model.config.get_text_config().vocab_size
        moe.model(input_ids=tokens[None], use_cache=False)
    rows = []
    for layer, (_, half) in zip(layers, pairs, strict=True):
        weight_ED = next(
            parameter
            for parameter in layer.router.parameters()
            if parameter.ndim == 2 and len(parameter) == layer.num_experts
        )
        scale_D = torch.ones(weight_ED.shape[1], dtype=torch.float64)
        if half in norms:
            like = torch.ones(1, 1, weight_ED.shape[1], device=moe.model.device, dtype=moe.model.dtype)
            scale_D = norm_scale(norms[half], like).cpu()
        rows.append(weight_ED.double().cpu() * scale_D)
    return rows


@torch.no_grad()
def route_agreement(
    moe: MoEModel, run: Callable[[], Tensor], change: Callable[[], AbstractContextManager[None]]
) -> tuple[float, int]:
    """The number of tokens' choices of experts that a change leaves as they were, and the number of choices.

    Args:
        moe: the model.
        run: one forward pass over a batch; gives the mask of the tokens to count (T,).
        change: a new context manager that makes the change.
    """
    with capture(moe) as plain:
        mask_T = run().flatten().bool()
    with capture(moe) as changed, change():
        run()
    equal, count = 0.0, 0
    for before_TK, after_TK in zip(plain.indices, changed.indices, strict=True):
        stays_TK = (before_TK[:, :, None] == after_TK[:, None, :]).any(-1)[mask_T.to(before_TK.device)]
        equal, count = equal + float(stays_TK.sum()), count + stays_TK.numel()
    return equal, count

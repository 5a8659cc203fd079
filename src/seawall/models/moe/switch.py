"""Runs a model with some experts switched off or always on, whatever its routers choose.

Legend: T tokens, K top-k.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from seawall.models.moe.calls import Arguments, ExpertsCall, call_reader
from seawall.models.moe.find import MoELayer, MoEModel

Experts = Sequence[Collection[int]]
"""Expert indices for each MoE layer; a layer may have none."""


@contextmanager
def steered(moe: MoEModel, *, off: Experts | None = None, on: Experts | None = None) -> Iterator[None]:
    """Inside, no token uses the experts `off`, and every token uses the experts `on`. No weight changes.

    The routing is changed at the experts' call, which is the same in every family. An expert that is off gets gate
    weight 0, and the token's other experts are rescaled to the token's former sum of weights; a token whose experts are
    all off gets nothing from the routed experts. An expert that is on replaces the token's weakest one with the gate
    weight of its strongest, rescaled to the same sum. All other tokens are computed bit for bit as before.

    Args:
        moe: the model.
        off: experts never used.
        on: experts always used, at most top-k of each layer.
    """
    none: Experts = [()] * moe.num_layers
    with ExitStack() as hooks:
        for layer, layer_off, layer_on in zip(moe.layers, off or none, on or none, strict=True):
            assert len(layer_on) <= layer.top_k
            assert not set(layer_off) & set(layer_on)
            if layer_off or layer_on:
                hook = _hook(layer, sorted(layer_off), sorted(layer_on))
                hooks.callback(layer.experts.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _hook(layer: MoELayer, off: list[int], on: list[int]) -> Callable[[nn.Module, Any, Any], Arguments]:
    read = call_reader(layer.experts)

    def hook(experts: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        call = read(args, kwargs)
        indices_TK, weights_TK = _activated(call.indices_TK, call.weights_TK, on) if on else _routing(call)
        weights_TK = weights_TK.masked_fill(_among(indices_TK, off), 0) if off else weights_TK
        changed_T = (indices_TK != call.indices_TK).any(-1) | (weights_TK != call.weights_TK).any(-1)
        scaled_TK = _scaled(weights_TK, call.weights_TK.sum(-1, keepdim=True))
        return call.with_routing(indices_TK, torch.where(changed_T[:, None], scaled_TK, call.weights_TK))

    return hook


def _routing(call: ExpertsCall) -> tuple[Tensor, Tensor]:
    return call.indices_TK, call.weights_TK


def _activated(indices_TK: Tensor, weights_TK: Tensor, on: list[int]) -> tuple[Tensor, Tensor]:
    """Routing in which every token uses each expert of `on`, with the token's largest weight."""
    indices_TK, largest_T1 = indices_TK.clone(), weights_TK.amax(-1, keepdim=True)
    for expert in on:
        absent_T1 = (indices_TK != expert).all(-1, keepdim=True)
        free_TK = weights_TK.masked_fill(_among(indices_TK, on), float("inf"))
        weakest_TK = torch.zeros_like(indices_TK, dtype=torch.bool).scatter(1, free_TK.argmin(-1, keepdim=True), True)
        indices_TK = indices_TK.masked_fill(weakest_TK & absent_T1, expert)
    return indices_TK, torch.where(_among(indices_TK, on), largest_T1, weights_TK)


def _scaled(weights_TK: Tensor, total_T1: Tensor) -> Tensor:
    """The weights, rescaled to another sum; zeros stay zeros."""
    sum_T1 = weights_TK.sum(-1, keepdim=True)
    return weights_TK * torch.where(sum_T1 > 0, total_T1 / sum_T1.where(sum_T1 > 0, 1), 0)


def _among(indices_TK: Tensor, experts: list[int]) -> Tensor:
    return torch.isin(indices_TK, torch.tensor(experts, device=indices_TK.device))

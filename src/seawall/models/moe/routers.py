"""Trains the routers alone, as copies precise enough for the small steps of routers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from torch import nn
from torch.func import functional_call

from seawall.models.moe.calls import ByToken, bare_copy, frozen, replaced_forward
from seawall.models.moe.find import MoELayer, MoEModel
from seawall.models.moe.trainable_copies import Part, TrainableCopies


@final
class TrainableRouters(TrainableCopies):
    """The copies of the routers' weights, named like the originals."""


def router_parameters(moe: MoEModel) -> dict[str, nn.Parameter]:
    """The parameters of the routers' logits, by name in the model's state dict.

    Each has one row per expert: the weight (E, D) and, in some families, a bias or scale (E,). Biases that only affect
    the choice of experts (DeepSeek's and ERNIE's score correction) take no gradient and are left out.
    """
    return {part.name: part.target for layer in moe.layers for part in _parts(layer)}


@contextmanager
def trainable_routers(moe: MoEModel, *, master_dtype: torch.dtype = torch.float32) -> Iterator[TrainableRouters]:
    """Inside, only the routers train, as copies with which the model routes.

    The forward pass rounds the copies to the model's dtype, as `write_back` does, while the optimizer updates them in
    `master_dtype`: at a learning rate of 1e-6, bfloat16 would lose most steps. Leaving the block, normally or by an
    error, restores the model.
    """
    copies = TrainableRouters([part for layer in moe.layers for part in _parts(layer)], master_dtype)
    with ExitStack() as changes:
        changes.enter_context(frozen(moe.model))
        for layer in moe.layers:
            changes.enter_context(replaced_forward(layer.router, ByToken(_forward(layer, copies))))
        yield copies


def _parts(layer: MoELayer) -> list[Part]:
    return [
        Part(f"{layer.router_name}.{name}", parameter)
        for name, parameter in layer.router.named_parameters()
        if parameter.shape[0] == layer.num_experts
    ]


def _forward(layer: MoELayer, copies: TrainableRouters) -> Callable[..., Any]:
    prefix = f"{layer.router_name}."
    masters = {part.name.removeprefix(prefix): (copies.get(part.name), part.target.dtype) for part in _parts(layer)}

    def forward(*args: Any, **kwargs: Any) -> Any:
        rounded = {name: master.to(dtype) for name, (master, dtype) in masters.items()}
        # A copy made now has what a sharded model holds during the pass; the rest of the time it holds slices.
        return functional_call(bare_copy(layer.router), rounded, args, kwargs)

    return forward

"""Training the routers alone, as copies precise enough for the small steps that routers need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from torch import nn
from torch.func import functional_call

from seawall.models.moe.calls import bare_copy, frozen, replaced_forward
from seawall.models.moe.find import MoELayer, MoEModel
from seawall.models.moe.trainable_copies import Part, TrainableCopies


@final
class TrainableRouters(TrainableCopies):
    """The copies of the routers' weights, named after the parameters that they stand for."""


def router_parameters(moe: MoEModel) -> dict[str, nn.Parameter]:
    """The parameters that make the routers' logits, by their names in the model's state dict.

    These have one row per expert: the weight (E, D) and, in some families, a bias or scale (E,). Biases that only
    steer the choice (DeepSeek's and ERNIE's score correction) take no gradient and are left out.
    """
    return {part.name: part.target for layer in moe.layers for part in _parts(layer)}


@contextmanager
def trainable_routers(moe: MoEModel, *, master_dtype: torch.dtype = torch.float32) -> Iterator[TrainableRouters]:
    """Only the routers train; inside, the model routes with their copies.

    The forward pass sees the copies rounded to the model's dtype, that is, what `write_back` would export, while the
    optimizer moves them in `master_dtype`: at a learning rate of 1e-6 most single steps are lost in bfloat16. Leaving
    the block, by the end or by an error, restores the model.
    """
    copies = TrainableRouters([part for layer in moe.layers for part in _parts(layer)], master_dtype)
    with ExitStack() as changes:
        changes.enter_context(frozen(moe.model))
        for layer in moe.layers:
            changes.enter_context(replaced_forward(layer.router, _forward(layer, copies)))
        yield copies


def _parts(layer: MoELayer) -> list[Part]:
    return [
        Part(f"{layer.router_name}.{name}", parameter)
        for name, parameter in layer.router.named_parameters()
        if parameter.shape[0] == layer.num_experts
    ]


def _forward(layer: MoELayer, copies: TrainableRouters) -> Callable[..., Any]:
    router = bare_copy(layer.router)
    prefix = f"{layer.router_name}."
    masters = {part.name.removeprefix(prefix): (copies.get(part.name), part.target.dtype) for part in _parts(layer)}

    def forward(*args: Any, **kwargs: Any) -> Any:
        rounded = {name: master.to(dtype) for name, (master, dtype) in masters.items()}
        return functional_call(router, rounded, args, kwargs)

    return forward

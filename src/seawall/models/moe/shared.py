"""Trains the shared experts alone: what every token of an MoE block passes through beside its routed experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from torch import nn
from torch.func import functional_call

from seawall.errors import UnsupportedModelError
from seawall.models.moe.calls import bare_copy, frozen, replaced_forward
from seawall.models.moe.find import MoELayer, MoEModel
from seawall.models.moe.trainable_copies import Part, TrainableCopies


@final
class TrainableSharedExperts(TrainableCopies):
    """The copies of the shared experts' parameters, named like the originals."""


def shared_modules(moe: MoEModel, layer: MoELayer) -> dict[str, nn.Module]:
    """The children of an MoE block with parameters, other than its routed experts and its router, by full name.

    These are the shared expert or experts and, in some families, their gate.
    """
    prefix, _, experts = layer.experts_name.rpartition(".")
    routed = (f"{prefix}.{experts}", layer.router_name)
    children = {f"{prefix}.{name}": child for name, child in moe.model.get_submodule(prefix).named_children()}
    return {
        name: child
        for name, child in children.items()
        if not any(other == name or other.startswith(f"{name}.") for other in routed)
        and any(parameter.ndim == 2 for parameter in child.parameters())
    }


@contextmanager
def trainable_shared_experts(
    moe: MoEModel, *, master_dtype: torch.dtype = torch.float32
) -> Iterator[TrainableSharedExperts]:
    """Inside, only the shared experts train, as copies with which the model computes, rounded to its dtype.

    Leaving the block, normally or by an error, restores the model; only `write_back` keeps the trained values.

    Raises:
        UnsupportedModelError: the model has no shared experts.
    """
    modules = {name: module for layer in moe.layers for name, module in shared_modules(moe, layer).items()}
    if not modules:
        raise UnsupportedModelError(
            "the shared experts cannot be repaired",
            got=f"{type(moe.model).__name__}, whose blocks hold a router and routed experts alone",
            expected="shared experts",
            remedy="set repair.parameters to selected, all_experts or full",
        )
    parts = [
        Part(f"{name}.{key}", value) for name, module in modules.items() for key, value in module.named_parameters()
    ]
    copies = TrainableSharedExperts(parts, master_dtype)
    with ExitStack() as changes:
        changes.enter_context(frozen(moe.model))
        for name, module in modules.items():
            changes.enter_context(replaced_forward(module, _forward(name, module, copies)))
        yield copies


def _forward(name: str, module: nn.Module, copies: TrainableSharedExperts) -> Callable[..., Any]:
    plain = bare_copy(module)
    masters = {key: (copies.get(f"{name}.{key}"), value.dtype) for key, value in module.named_parameters()}

    def forward(*args: Any, **kwargs: Any) -> Any:
        rounded = {key: master.to(dtype) for key, (master, dtype) in masters.items()}
        return functional_call(plain, rounded, args, kwargs)

    return forward

"""Groups of a model's parameters by their part of the computation: routers, experts, attention."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from seawall.errors import UnsupportedModelError
from seawall.models.hidden.sublayers import layer_attentions
from seawall.models.moe.find import MoELayer, MoEModel
from seawall.models.moe.module_copies import modules_beside_experts

ParameterGroup = Literal["experts", "shared_experts", "routers", "attention", "other"]
"""Routed experts, the experts beside them that every token uses, routers, attention, and everything else: embeddings,
norms, dense MLPs, output layer."""
GROUPS: tuple[ParameterGroup, ...] = get_args(ParameterGroup)


def parameter_groups(moe: MoEModel, names: Iterable[str]) -> dict[ParameterGroup, tuple[str, ...]]:
    """The names by group, in the order of `GROUPS`; groups without a name are left out.

    In a model whose attention cannot be identified, attention counts as `other`.

    Args:
        moe: the model.
        names: tensors of the model's state dict.
    """
    modules = _modules(moe)
    by_group: dict[ParameterGroup, list[str]] = {group: [] for group in GROUPS}
    for name in names:
        by_group[_group(name, modules)].append(name)
    return {group: tuple(members) for group, members in by_group.items() if members}


def _group(name: str, modules: dict[ParameterGroup, list[str]]) -> ParameterGroup:
    for group, paths in modules.items():
        if any(name == path or name.startswith(f"{path}.") for path in paths):
            return group
    return "other"


def _modules(moe: MoEModel) -> dict[ParameterGroup, list[str]]:
    """Paths of every group but `other`; a name belongs to the first group with a path that begins it."""
    return {
        "experts": [layer.experts_name for layer in moe.layers],
        "routers": [path for layer in moe.layers for path in router_paths(moe, layer)],
        "shared_experts": list(modules_beside_experts(moe)),
        "attention": _attention(moe),
    }


def router_paths(moe: MoEModel, layer: MoELayer) -> tuple[str, ...]:
    """The router's path, and those of tensors of its block with a number per expert (AFMoE's and LFM2's bias)."""
    path = layer.router_name.rpartition(".")[0]
    block = moe.model.get_submodule(path)
    own = (*block.named_parameters(recurse=False), *block.named_buffers(recurse=False))
    beside = [f"{path}.{name}" for name, tensor in own if tensor.numel() == layer.num_experts]
    return (layer.router_name, *beside)


def _attention(moe: MoEModel) -> list[str]:
    try:
        attention = set(map(id, layer_attentions(moe.model).values()))
    except UnsupportedModelError:
        return []
    return [name for name, module in moe.model.named_modules() if id(module) in attention]

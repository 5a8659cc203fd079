"""Trains whole modules of a model, as copies: its shared experts, or the attention beside its routed experts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from torch import nn
from torch.func import functional_call

from seawall.errors import UnsupportedModelError
from seawall.models.hidden.sublayers import has_matrix, is_projection, layer_attentions, mixes_tokens
from seawall.models.moe.calls import bare_copy, frozen, replaced_forward
from seawall.models.moe.find import MoELayer, MoEModel
from seawall.models.moe.trainable_copies import Part, TrainableCopies


@final
class TrainableModules(TrainableCopies):
    """The copies of the modules' parameters, named like the originals."""


def shared_experts(moe: MoEModel) -> dict[str, nn.Module]:
    """The shared experts, and in some families their gate, by module path.

    Raises:
        UnsupportedModelError: the model has none.
    """
    modules = modules_beside_experts(moe)
    if not modules:
        raise no_shared_experts(type(moe.model).__name__)
    return modules


def no_shared_experts(model: str) -> UnsupportedModelError:
    """The refusal to repair the shared experts of a model without any."""
    return UnsupportedModelError(
        "the shared experts cannot be repaired",
        got=f"{model}, whose blocks hold a router and routed experts alone",
        expected="shared experts",
        remedy="set repair.parameters to selected, all_experts or full",
    )


def modules_beside_experts(moe: MoEModel) -> dict[str, nn.Module]:
    """Children of the MoE blocks with a weight matrix, other than routed experts and routers, by module path.

    They are the shared experts, and in some families their gate; empty in a model without shared experts. Where routed
    experts are parts of the decoder layer itself (Gemma 4), the dense MLP beside them. A shared MLP beside the MoE
    block (Granite) counts, too; a projection that every routed expert's input or output passes (Nemotron-H, Muse
    Spark) does not.
    """
    return {name: module for layer in moe.layers for name, module in beside_routed(moe, layer).items()}


def beside_routed(moe: MoEModel, layer: MoELayer) -> dict[str, nn.Module]:
    """`modules_beside_experts` of one layer."""
    prefix = layer.experts_name.rpartition(".")[0]
    block = moe.model.get_submodule(prefix)
    routed = (layer.experts_name, layer.router_name)
    beside = {
        f"{prefix}.{name}": child
        for name, child in block.named_children()
        if not any(path == f"{prefix}.{name}" or path.startswith(f"{prefix}.{name}.") for path in routed)
        and has_matrix(child)
        and not is_projection(child)
    }
    if not any(mixes_tokens(child) for child in block.children()):
        return beside | _shared_beside_block(moe, prefix.rpartition(".")[0])
    return {name: child for name, child in beside.items() if not mixes_tokens(child)}  # the layer holds its attention


def _shared_beside_block(moe: MoEModel, owner: str) -> dict[str, nn.Module]:
    """The modules called shared among the children of the module that holds an MoE block."""
    children = moe.model.get_submodule(owner).named_children()
    return {f"{owner}.{name}": child for name, child in children if "shared" in name and has_matrix(child)}


def attention_modules(moe: MoEModel, layers: Collection[int]) -> dict[str, nn.Module]:
    """The attention of these decoder layers, by module path.

    Raises:
        UnsupportedModelError: the decoder layers cannot be identified, or one of these has not one attention.
    """
    by_layer = layer_attentions(moe.model)
    missing = sorted(set(layers) - by_layer.keys())
    if missing:
        raise UnsupportedModelError(
            "the attention of decoder layers cannot be identified",
            got=f"none or several in layers {', '.join(map(str, missing))}",
            expected="one module that reads other tokens in each",
        )
    attention = {id(by_layer[index]) for index in layers}
    return {name: module for name, module in moe.model.named_modules() if id(module) in attention}


@contextmanager
def trainable_modules(
    moe: MoEModel, modules: Mapping[str, nn.Module], *, master_dtype: torch.dtype = torch.float32
) -> Iterator[TrainableModules]:
    """Inside, only these modules train, as copies with which the model computes, rounded to its dtype.

    Leaving the block, normally or by an error, restores the model; only `write_back` keeps the trained values.

    Args:
        moe: the model.
        modules: modules of the model by their path.
        master_dtype: dtype of the copies.
    """
    parts = [
        Part(f"{name}.{key}", value) for name, module in modules.items() for key, value in module.named_parameters()
    ]
    copies = TrainableModules(parts, master_dtype)
    with ExitStack() as changes:
        changes.enter_context(frozen(moe.model))
        for name, module in modules.items():
            changes.enter_context(replaced_forward(module, _forward(name, module, copies)))
        yield copies


def _forward(name: str, module: nn.Module, copies: TrainableModules) -> Callable[..., Any]:
    plain = bare_copy(module)
    masters = {key: (copies.get(f"{name}.{key}"), value.dtype) for key, value in module.named_parameters()}

    def forward(*args: Any, **kwargs: Any) -> Any:
        rounded = {key: master.to(dtype) for key, (master, dtype) in masters.items()}
        return functional_call(plain, rounded, args, kwargs)

    return forward

"""Finds the mixture-of-experts layers of a model by structure, without a table of families.

A module is a stack of routed experts if it has at least two 3-D parameters, dimension 0 of all its own parameters
equals its `num_experts`, and its forward takes three arguments: hidden states, expert indices, expert weights.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.output_capturing import OutputRecorder

from seawall.errors import UnsupportedModelError

CALL_ARGUMENTS = 3
TOP_K_KEYS = ("num_experts_per_tok", "top_k_experts")
"""Configuration keys of K, for the few routers without a `top_k` attribute (DeepSeek-V2, Gemma 4)."""
_WRAPPED = ".base_layer"
_REMEDY = (
    "use a mixture-of-experts model whose class in transformers calls its experts with three arguments, such as "
    "Mixtral, OLMoE, Qwen3-MoE, DeepSeek-V3, GLM-4-MoE or gpt-oss"
)


@dataclass(frozen=True, eq=False)
class MoELayer:
    """One layer of routed experts.

    Attributes:
        index: position among the MoE layers, 0 to L-1.
        decoder_layer: position among all decoder layers, dense ones included.
        experts_name: the stack's module path in the model.
        experts: the stack; called as `experts(hidden_TD, indices_TK, weights_TK)`.
        router_name: the router's module path in the model.
        router: the module that scores the experts.
        router_logits_index: index of the scores (T, E) in the router's output.
        num_experts: E.
        top_k: K.
        weights: names of the parameters of `experts` whose dimension 0 is E, biases included.
    """

    index: int
    decoder_layer: int
    experts_name: str
    experts: nn.Module
    router_name: str
    router: nn.Module
    router_logits_index: int
    num_experts: int
    top_k: int
    weights: tuple[str, ...]

    def parameter(self, weight: str) -> nn.Parameter:
        """The stacked parameter (E, ...) called `weight` in the experts module."""
        return self.experts.get_parameter(weight)

    def full_name(self, weight: str) -> str:
        """The name of the stacked parameter `weight` in the model's state dict."""
        return f"{self.experts_name}.{weight}"


@dataclass(frozen=True, eq=False)
class MoEModel:
    """A model and its MoE layers, in forward order.

    Attributes:
        model: the model.
        layers: its MoE layers; all have the same E and K.
        skipped: other modules with 3-D parameters, as `name (Class)`; seawall leaves them alone.
    """

    model: PreTrainedModel
    layers: tuple[MoELayer, ...]
    skipped: tuple[str, ...] = ()

    @property
    def num_layers(self) -> int:
        """L, the number of MoE layers."""
        return len(self.layers)

    @property
    def num_experts(self) -> int:
        """E, the number of routed experts of each layer."""
        return self.layers[0].num_experts

    @property
    def top_k(self) -> int:
        """K, the number of experts per token."""
        return self.layers[0].top_k

    @property
    def total_experts(self) -> int:
        """L x E."""
        return self.num_layers * self.num_experts

    def describe(self) -> str:
        """A one-line summary: `15 MoE layers x 32 experts, top-4, 0 skipped`."""
        return (
            f"{self.num_layers} MoE layers x {self.num_experts} experts, top-{self.top_k}, {len(self.skipped)} skipped"
        )


def find_moe(model: PreTrainedModel) -> MoEModel:
    """The MoE layers of a model.

    Reads only shapes, so the model may be on the meta device.

    Raises:
        UnsupportedModelError: the model is dense, or has expert stacks that seawall does not support.
    """
    moe = find_moe_if_any(model)
    if moe is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} is a dense model",
            got="no module with stacked 3-D expert parameters",
            expected="mixture-of-experts layers",
            remedy=_REMEDY,
        )
    return moe


def find_moe_if_any(model: PreTrainedModel) -> MoEModel | None:
    """The MoE layers of a model; None for a dense model.

    Raises:
        UnsupportedModelError: the model has expert stacks that seawall does not support.
    """
    stacks = dict(_stacks(model))
    routed = {name: module for name, module in stacks.items() if _is_routed_experts(module)}
    blocks = {_parent(name) for name in routed}
    skipped = []
    for name, module in stacks.items():
        if name in routed:
            continue
        if _looks_like_experts(name, module) and _parent(name) not in blocks:
            raise _unreachable(name, module)
        skipped.append(f"{name} ({type(module).__name__})")
    if not routed:
        return None
    layers = tuple(_layer(model, index, name) for index, name in enumerate(routed))
    _require_one_size(model, layers)
    return MoEModel(model=model, layers=layers, skipped=tuple(skipped))


def routed_stacks(model: nn.Module) -> dict[str, nn.Module]:
    """The stacks of routed experts by module path; empty for a dense model."""
    return {name: module for name, module in _stacks(model) if _is_routed_experts(module)}


def _stacks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules with a 3-D parameter of their own, except convolutions and other modules of PyTorch itself."""
    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn."):
            continue
        if any(parameter.ndim == 3 for parameter in module.parameters(recurse=False)):
            yield name, module


def _is_routed_experts(module: nn.Module) -> bool:
    own = tuple(module.parameters(recurse=False))
    num_experts = vars(module).get("num_experts")
    stacked = sum(parameter.ndim == 3 for parameter in own)
    return (
        stacked >= 2
        and all(parameter.shape[0] == num_experts for parameter in own)
        and len(call_arguments(module)) >= CALL_ARGUMENTS
    )


def call_arguments(module: nn.Module) -> tuple[str, ...]:
    """Names of the positional arguments of a module's forward."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(type(module).forward).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)[1:]


def _looks_like_experts(name: str, module: nn.Module) -> bool:
    return "expert" in type(module).__name__.lower() or "expert" in name.rpartition(".")[2]


def _unreachable(name: str, module: nn.Module) -> UnsupportedModelError:
    shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in module.named_parameters(recurse=False))
    return UnsupportedModelError(
        f"the experts of this model are not supported: {type(module).__name__} at {name}",
        got=f"parameters {shapes} and the call forward({', '.join(call_arguments(module))})",
        expected="parameters stacked by expert and the call forward(hidden_states, top_k_index, top_k_weights)",
        remedy=_REMEDY,
    )


def _layer(model: PreTrainedModel, index: int, experts_name: str) -> MoELayer:
    experts = model.get_submodule(experts_name)
    block_name = _parent(experts_name)
    block = model.get_submodule(block_name)
    num_experts = next(experts.parameters(recurse=False)).shape[0]
    router_name, logits_index = _router(model, block, num_experts)
    full_router_name = f"{block_name}.{router_name}"
    router = model.get_submodule(full_router_name)
    return MoELayer(
        index=index,
        decoder_layer=_decoder_layer(experts_name, index),
        experts_name=experts_name,
        experts=experts,
        router_name=full_router_name,
        router=router,
        router_logits_index=logits_index,
        num_experts=num_experts,
        top_k=_top_k(model, block, router),
        weights=tuple(name for name, _ in experts.named_parameters(recurse=False)),
    )


def _router(model: PreTrainedModel, block: nn.Module, num_experts: int) -> tuple[str, int]:
    """The router's name in its block, and the index of the logits in its output.

    transformers declares both for its own models; in other code the router is the only child with a matrix (E, D).
    """
    for target, logits_index in _declared_routers(model):
        names = [name for name, child in block.named_modules() if name and _is_a(child, target)]
        if len(names) == 1:
            return names[0], logits_index
    names = [name for name, child in block.named_children() if _scores_experts(child, num_experts)]
    if len(names) != 1:
        raise UnsupportedModelError(
            f"no router found in {type(block).__name__}",
            got=f"{len(names)} children with a weight of {num_experts} rows ({', '.join(names) or 'none'})",
            expected="exactly one router beside the experts",
            remedy=_REMEDY,
        )
    return names[0], 0


def _declared_routers(model: PreTrainedModel) -> Iterator[tuple[type[nn.Module] | str, int]]:
    """The modules that transformers records as `router_logits`: (class or its name, index in the module's output)."""
    for module in model.modules():
        if not isinstance(module, PreTrainedModel):
            continue
        entry = module.can_record_outputs.get("router_logits", ())
        for recorder in entry if isinstance(entry, (list, tuple)) else (entry,):
            if isinstance(recorder, OutputRecorder):
                yield recorder.class_name or recorder.target_class, recorder.index
            else:
                yield recorder, 1


def _is_a(module: nn.Module, target: type[nn.Module] | str) -> bool:
    return type(module).__name__ == target if isinstance(target, str) else isinstance(module, target)


def _scores_experts(child: nn.Module, num_experts: int) -> bool:
    return any(value.ndim == 2 and value.shape[0] == num_experts for value in child.parameters())


def _top_k(model: PreTrainedModel, block: nn.Module, router: nn.Module) -> int:
    config = model.config.get_text_config()
    configured = [getattr(config, key, None) for key in TOP_K_KEYS]
    candidates = [vars(router).get("top_k"), vars(block).get("top_k"), *configured]
    top_k = next((value for value in candidates if isinstance(value, int)), None)
    if top_k is None:
        raise UnsupportedModelError(
            f"{type(config).__name__} gives no number of experts per token",
            got=f"no number under {' or '.join(TOP_K_KEYS)}",
            expected="the top-k of the router",
            remedy="add num_experts_per_tok to the model's config.json",
        )
    return top_k


def _parent(name: str) -> str:
    """The path of a module's parent; PEFT's wrappers around the module are skipped."""
    while name.endswith(_WRAPPED):
        name = name.removesuffix(_WRAPPED)
    return name.rpartition(".")[0]


def _decoder_layer(name: str, default: int) -> int:
    return next((int(part) for part in name.split(".") if part.isdigit()), default)


def _require_one_size(model: PreTrainedModel, layers: tuple[MoELayer, ...]) -> None:
    sizes = {(layer.num_experts, layer.top_k) for layer in layers}
    if len(sizes) > 1:
        raise UnsupportedModelError(
            f"the MoE layers of {type(model).__name__} differ in size",
            got=f"experts and top-k of {sorted(sizes)}",
            expected="the same number of experts and the same top-k in every MoE layer",
            remedy=_REMEDY,
        )


def stacked_weights(layer: MoELayer) -> dict[str, Tensor]:
    """The stacked parameters (E, ...) of a layer, by name in the model's state dict."""
    return {layer.full_name(weight): layer.parameter(weight) for weight in layer.weights}

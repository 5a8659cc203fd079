"""Trainable copies of the expert step (selected, all or shared experts, or the full model) and of the routers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from seawall.config.repair import RepairConfig
from seawall.models.moe.experts import trainable_experts
from seawall.models.moe.find import MoELayer, MoEModel
from seawall.models.moe.full_finetune import trainable_model
from seawall.models.moe.module_copies import attention_modules, beside_routed, shared_experts, trainable_modules
from seawall.models.moe.routers import router_parameters, trainable_routers
from seawall.models.moe.trainable_copies import Part, TrainableCopies


@final
@dataclass(frozen=True, eq=False)
class Trainables:
    """The parameters of the two steps.

    Attributes:
        experts: parameters of the expert step, by name; empty if it is off.
        routers: parameters of the router step, by name; empty if it is off.
        groups: the copies that hold them.
        factors: of the learning rate, by name, of parameters that do not train at that of their step.
    """

    experts: Mapping[str, nn.Parameter]
    routers: Mapping[str, nn.Parameter]
    groups: tuple[TrainableCopies, ...]
    factors: Mapping[str, float]

    def only(self, training: Mapping[str, nn.Parameter]) -> None:
        """Enables gradients for these parameters alone."""
        for group in self.groups:
            for parameter in group.parameters():
                parameter.requires_grad_(False)
        for parameter in training.values():
            parameter.requires_grad_(True)

    def state(self) -> dict[str, Tensor]:
        """Values of all copies."""
        return {name: tensor for group in self.groups for name, tensor in group.state().items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Loads values that `state` returned."""
        for group in self.groups:
            names = group.state().keys()
            group.load_state({name: tensors[name] for name in names if name in tensors})

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the model that may change; they hold no copy, so that the copies may be freed."""
        return tuple(part for group in self.groups for part in group.parts)


def first_changed_layer(moe: MoEModel, selected: Sequence[Sequence[int]], config: RepairConfig) -> int:
    """The lowest decoder layer with a parameter that the expert step trains; 0 if every parameter trains."""
    if config.parameters == "full":
        return 0
    return min(_changed_layers(moe, selected, config), default=0)


def routers_below(moe: MoEModel, layer: int, config: RepairConfig) -> bool:
    """Whether the router step changes a decoder layer below this one."""
    return config.router.enabled and moe.layers[0].decoder_layer < layer


def require_trainable(moe: MoEModel, config: RepairConfig) -> None:
    """Refuses a model without a part that the expert step trains, whose weights may be on the meta device.

    Raises:
        UnsupportedModelError: it has no shared experts, or attention beside the experts cannot be identified.
    """
    if not config.expert.enabled or config.parameters in ("selected", "full"):
        return  # the selection decides which layers' attention trains
    if config.parameters == "shared":
        shared_experts(moe)
    if config.expert.attention_lr is not None:
        attention_modules(moe, _changed_layers(moe, (), config))


def _changed_layers(moe: MoEModel, selected: Sequence[Sequence[int]], config: RepairConfig) -> set[int]:
    """The decoder layers whose experts train."""
    return {layer.decoder_layer for layer in moe.layers if _changes(moe, layer, selected, config)}


def _changes(moe: MoEModel, layer: MoELayer, selected: Sequence[Sequence[int]], config: RepairConfig) -> bool:
    """Whether the expert step trains experts of this layer."""
    if config.parameters == "shared":
        return bool(beside_routed(moe, layer))
    return config.parameters != "selected" or bool(selected[layer.index])


@contextmanager
def trainables(moe: MoEModel, selected: Sequence[Sequence[int]], config: RepairConfig) -> Iterator[Trainables]:
    """Inside, the model computes with the copies; restored on exit."""
    with ExitStack() as stack:
        groups: list[TrainableCopies] = []
        experts: dict[str, nn.Parameter] = {}
        routers: dict[str, nn.Parameter] = {}
        factors: dict[str, float] = {}
        if config.parameters == "full":
            full_model = stack.enter_context(trainable_model(moe.model))
            groups.append(full_model)
            everything = dict(full_model.named_parameters())
            experts = everything if config.expert.enabled else {}
            routers = {name: everything[name] for name in router_parameters(moe)} if config.router.enabled else {}
        else:
            if config.expert.enabled and config.parameters == "shared":
                shared = stack.enter_context(trainable_modules(moe, shared_experts(moe)))
                groups.append(shared)
                experts = dict(shared.named_parameters())
            elif config.expert.enabled:
                chosen = selected if config.parameters == "selected" else [range(moe.num_experts)] * moe.num_layers
                copies = stack.enter_context(trainable_experts(moe, chosen))
                groups.append(copies)
                experts = dict(copies.named_parameters())
            if config.expert.enabled and config.expert.attention_lr is not None:
                beside = attention_modules(moe, _changed_layers(moe, selected, config))
                attention = stack.enter_context(trainable_modules(moe, beside))
                groups.append(attention)
                experts |= dict(attention.named_parameters())
                factor = config.expert.attention_lr / config.expert.lr
                factors = {name: factor for name, _ in attention.named_parameters()}
            if config.router.enabled:
                gates = stack.enter_context(trainable_routers(moe))
                groups.append(gates)
                routers = dict(gates.named_parameters())
        yield Trainables(experts, routers, tuple(groups), factors)

"""The role of a checkpoint's tensor in a mixture of experts: part of an expert, of a router, or neither.

Published checkpoints name tensors differently from the model in memory, and most store one tensor per expert where the
model has a stack. The mapping between the two is transformers' own, for every model that it loads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from seawall.models.moe.find import MoEModel
from seawall.models.moe.parameter_groups import router_paths

_EXPERT = re.compile(r"experts\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class TensorRole:
    """What a tensor is part of.

    Attributes:
        kind: a routed expert (or a stack of them), a router, or anything else.
        layer: position among the MoE layers; None for `other`.
        expert: index of the expert; None for a stack of all experts, and for other kinds.
    """

    kind: Literal["expert", "router", "other"]
    layer: int | None = None
    expert: int | None = None


OTHER = TensorRole("other")


def tensor_roles(moe: MoEModel, names: Iterable[str]) -> dict[str, TensorRole]:
    """The role of every tensor of a checkpoint of this model.

    Args:
        moe: the model; may be on the meta device.
        names: tensors as the checkpoint's files name them. Tensors that the model lacks are `other`.
    """
    stacks = {layer.full_name(weight): layer.index for layer in moe.layers for weight in layer.weights}
    routers = {path: layer.index for layer in moe.layers for path in router_paths(moe, layer)}
    targets = load_targets(moe.model, names)
    return {name: _role(name, target.name, stacks, routers) for name, target in targets.items()}


def _role(name: str, target: str, stacks: Mapping[str, int], routers: Mapping[str, int]) -> TensorRole:
    if target in stacks:
        expert = _EXPERT.search(name)
        return TensorRole("expert", stacks[target], None if expert is None else int(expert[1]))
    inside = (index for path, index in routers.items() if target == path or target.startswith(f"{path}."))
    router = next(inside, None)
    return OTHER if router is None else TensorRole("router", router)


@dataclass(frozen=True, slots=True)
class LoadTarget:
    """The parameter that loading writes a checkpoint's tensor to.

    Attributes:
        name: the parameter; where a converter makes several, the first one.
        converter: combines this tensor with others into the parameter; None where the tensor is loaded unchanged.
        pattern: the converter's input that the tensor matches; empty without a converter.
    """

    name: str
    converter: WeightConverter | None = None
    pattern: str = ""


def load_targets(model: PreTrainedModel, names: Iterable[str]) -> dict[str, LoadTarget]:
    """The load target of every tensor of a checkpoint of this model, sorted by name.

    Args:
        model: may be on the meta device.
        names: tensors as the checkpoint's files name them. The target of a tensor that the model lacks is a name that
            matches no parameter.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    state = model.state_dict()
    targets = {}
    for name in sorted(names):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if target not in state and name in state:
            targets[name] = LoadTarget(name)
        elif pattern is None:
            targets[name] = LoadTarget(target)
        else:
            targets[name] = LoadTarget(target, by_pattern[pattern], pattern)
    return targets

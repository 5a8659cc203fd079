"""Which part of a mixture of experts a tensor of its checkpoint belongs to.

Published checkpoints name tensors otherwise than the model in memory does, and most have one tensor per expert where
memory has a stack. transformers knows how to get from the one to the other, for every model that it loads.
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

_EXPERT = re.compile(r"experts\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class TensorRole:
    """Where a tensor belongs.

    Attributes:
        kind: part of the routed experts, of a router, or of the rest.
        layer: position among the MoE layers; None for the rest.
        expert: whose tensor it is; None for a stack of all experts, and where it is no expert's.
    """

    kind: Literal["expert", "router", "other"]
    layer: int | None = None
    expert: int | None = None


OTHER = TensorRole("other")


def tensor_roles(moe: MoEModel, names: Iterable[str]) -> dict[str, TensorRole]:
    """The place of every tensor of a checkpoint of this model.

    Args:
        moe: the model; on the meta device will do.
        names: tensors as the checkpoint's files name them. Those that the model does not have are `other`.
    """
    stacks = {layer.full_name(weight): layer.index for layer in moe.layers for weight in layer.weights}
    routers = {layer.router_name: layer.index for layer in moe.layers}
    return {name: _place(name, target, stacks, routers) for name, target in _names_in_memory(moe.model, names).items()}


def _place(name: str, target: str, stacks: Mapping[str, int], routers: Mapping[str, int]) -> TensorRole:
    if target in stacks:
        expert = _EXPERT.search(name)
        return TensorRole("expert", stacks[target], None if expert is None else int(expert[1]))
    router = next((index for prefix, index in routers.items() if target.startswith(f"{prefix}.")), None)
    return OTHER if router is None else TensorRole("router", router)


def _names_in_memory(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """The parameter that loading would put each tensor into."""
    return {name: target.name for name, target in load_targets(model, names).items()}


@dataclass(frozen=True, slots=True)
class LoadTarget:
    """Where loading puts a tensor of a checkpoint.

    Attributes:
        name: the parameter; where a converter makes several, the first of them.
        converter: what makes it out of this tensor and others; None where it is taken as it is.
        pattern: which of the converter's inputs the tensor is; empty without a converter.
    """

    name: str
    converter: WeightConverter | None = None
    pattern: str = ""


def load_targets(model: PreTrainedModel, names: Iterable[str]) -> dict[str, LoadTarget]:
    """The target of every tensor of a checkpoint of this model, in the order of the names.

    Args:
        model: on the meta device will do.
        names: tensors as the checkpoint's files name them. What the model does not have keeps a name of no parameter.
    """
    transforms = get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    state = model.state_dict()
    found = {}
    for name in sorted(names):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if target not in state and name in state:
            found[name] = LoadTarget(name)
        elif pattern is None:
            found[name] = LoadTarget(target)
        else:
            found[name] = LoadTarget(target, by_pattern[pattern], pattern)
    return found

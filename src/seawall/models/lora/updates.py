"""What training changes in a model's weight matrices: LoRA factors of PEFT, or the matrices themselves.

Adapters are found by the class of their modules, whether they were added by `get_peft_model` or by transformers, and go
by the name that the adapted parameter has in the model without adapters.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seawall.errors import UnsupportedModelError

_SIDES = ("lora_A", "lora_B")
_WRAPPERS = re.compile(r"^base_model\.model\.|\.base_layer(?=\.)|\.modules_to_save\.[^.]+(?=\.)")


@dataclass(frozen=True, eq=False)
class LowRankUpdate:
    """A LoRA update `scaling * B A` of a weight matrix, or of every expert of a stack.

    Attributes:
        name: the parameter that it is added to, in the model without adapters.
        shape: of the update: (rows, columns) or (E, rows, columns), whichever way the parameter is stored.
        scaling: PEFT's factor, such as alpha / r.
    """

    name: str
    shape: tuple[int, ...]
    scaling: float
    _module: Any
    _adapter: str

    def factors(self) -> tuple[Tensor, Tensor]:
        """B (..., rows, r) and A (..., r, columns) as they are now, for autograd too."""
        B, A = (side[self._adapter].weight for side in (self._module.lora_B, self._module.lora_A))
        if len(self.shape) == 2:
            return B, A
        experts, rows, columns = self.shape
        # PEFT keeps A as (experts, r) x columns and B as rows x (r, experts): see its ParamWrapper.get_delta_weight.
        return B.reshape(rows, -1, experts).permute(2, 0, 1), A.reshape(experts, -1, columns)

    @torch.no_grad()
    def replace_B(self, B: Tensor) -> None:
        """Write another B (..., rows, r) in place of the adapter's own, in the type that it has."""
        weight = self._module.lora_B[self._adapter].weight
        weight.copy_(B if len(self.shape) == 2 else B.permute(1, 2, 0).reshape(weight.shape))

    @property
    def merged(self) -> bool:
        """Whether the update has been added to the weights: then its factors say nothing of what the model does."""
        return bool(self._module.merged)


@dataclass(frozen=True, eq=False)
class WholeUpdate:
    """A parameter that is trained itself.

    Attributes:
        name: of the parameter in the model without adapters.
    """

    name: str
    _module: nn.Module
    _key: str

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter as it is now."""
        return self._module.get_parameter(self._key)


Update = LowRankUpdate | WholeUpdate


def trainable_updates(model: nn.Module) -> list[Update]:
    """Everything that takes a gradient: LoRA factors by the matrix that they change, and whole parameters.

    Raises:
        UnsupportedModelError: an adapter whose update is not `scaling * B A` of a matrix (DoRA, AdaLoRA, IA3, LoRA of
            convolutions or embeddings), or two adapters that train at once.
    """
    found: list[Update] = []
    of_adapters: set[int] = set()
    for name, module in model.named_modules():
        if _is_adapted(module):
            found += _low_rank(name, module, training=True)
            of_adapters |= _adapter_parameters(module)
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in of_adapters:
                found.append(WholeUpdate(_plain_name(f"{name}.{key}"), module, key))
    return found


def adapter_updates(model: nn.Module) -> list[LowRankUpdate]:
    """The LoRA factors of a model's active adapter by the matrix that they change, whether they train or not.

    Raises:
        UnsupportedModelError: an adapter whose update is not `scaling * B A` of a matrix, or two that are active.
    """
    adapted = [(name, module) for name, module in model.named_modules() if _is_adapted(module)]
    here = [(name, module) for name, module in adapted if _is_active(module)]
    return [update for name, module in here for update in _low_rank(name, module, training=False)]


def _is_adapted(module: nn.Module) -> bool:
    """Whether PEFT put this module in; no model has one where PEFT was never imported."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    return tuners is not None and isinstance(module, tuners.BaseTunerLayer)


def _adapter_parameters(module: Any) -> set[int]:
    """The ids of the parameters that an adapted module has beside those of the layer it wraps."""
    wrapped = {id(parameter) for parameter in module.base_layer.parameters()}
    return {id(parameter) for parameter in module.parameters()} - wrapped


def _is_active(module: Any) -> bool:
    """Whether an active adapter has anything in this module: another adapter may have brought it."""
    layers = [vars(module)["_modules"].get(key, {}) for key in module.adapter_layer_names]
    return any(name in layer for layer in layers for name in module.active_adapters)


def _low_rank(name: str, module: Any, *, training: bool) -> list[LowRankUpdate]:
    """The update of an adapted module by its one adapter that trains, or by the one that is active."""
    own = _adapter_parameters(module)
    if training and not any(parameter.requires_grad for parameter in module.parameters() if id(parameter) in own):
        return []
    counts = _trains if training else _is_plain
    adapters = [one for one in module.active_adapters if counts(module, one)]
    if len(adapters) != 1:
        which = "that train" if training else "that are active"
        raise _unsupported(name, module, f"{len(adapters)} LoRA adapters of a matrix {which}", "one")
    adapter = adapters[0]
    variant = vars(module).get("lora_variant") or module._modules.get("lora_variant") or {}
    if adapter in variant or module.use_dora.get(adapter, False):
        raise _unsupported(name, module, "a variant of LoRA", "plain LoRA, whose update is B A")
    layers = sys.modules["peft.tuners.lora.layer"]
    key = module.parameter_name if isinstance(module, layers.ParamWrapper) else "weight"
    rows, columns = module.out_features, module.in_features
    stack = (module.num_experts,) if isinstance(module, layers.ParamWrapper) and module.num_experts > 1 else ()
    plain = _plain_name(f"{name}.{key}")
    return [LowRankUpdate(plain, (*stack, rows, columns), float(module.scaling[adapter]), module, adapter)]


def _trains(module: Any, adapter: str) -> bool:
    return _is_plain(module, adapter) and any(_factor(module, side, adapter).requires_grad for side in _SIDES)


def _is_plain(module: Any, adapter: str) -> bool:
    """Whether the adapter of this name is a pair of factors here."""
    sides = [vars(module)["_modules"].get(side, {}) for side in _SIDES]
    return all(adapter in side and isinstance(side[adapter], nn.Linear) for side in sides)


def _factor(module: Any, side: str, adapter: str) -> Tensor:
    weight: Tensor = vars(module)["_modules"][side][adapter].weight
    return weight


def _plain_name(name: str) -> str:
    return _WRAPPERS.sub("", name)


def _unsupported(name: str, module: nn.Module, got: str, expected: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the update of {_plain_name(name)} is not that of plain LoRA ({type(module).__name__})",
        got=got,
        expected=expected,
        remedy="train one plain LoRA adapter of linear layers or stacked experts, or the weights themselves",
    )

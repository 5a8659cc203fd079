"""What training changes in a model: low-rank updates of PEFT's LoRA, and parameters that train directly.

Adapters are recognised by the class of their modules, so it does not matter whether `get_peft_model` or transformers
added them. Updates carry the name of the adapted parameter in the model without adapters.
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
        name: the adapted parameter, as named in the model without adapters.
        shape: of the update: (rows, columns) or (E, rows, columns), even where the parameter is stored transposed.
        scaling: PEFT's factor of the update, such as alpha / r.
    """

    name: str
    shape: tuple[int, ...]
    scaling: float
    _module: Any
    _adapter: str

    def factors(self) -> tuple[Tensor, Tensor]:
        """The current B (..., rows, r) and A (..., r, columns), attached to the autograd graph."""
        B, A = (side[self._adapter].weight for side in (self._module.lora_B, self._module.lora_A))
        if len(self.shape) == 2:
            return B, A
        experts, rows, columns = self.shape
        # PEFT keeps A as (experts, r) x columns and B as rows x (r, experts): see its ParamWrapper.get_delta_weight.
        return B.reshape(rows, -1, experts).permute(2, 0, 1), A.reshape(experts, -1, columns)

    @torch.no_grad()
    def product(self, expert: int | None = None) -> Tensor:
        """`scaling * B A` (..., rows, columns) in float32; with `expert`, that of one slice of a stack."""
        B, A = (factor.float() for factor in self.factors())
        if expert is not None:
            B, A = B[expert], A[expert]
        return self.scaling * (B @ A)

    @torch.no_grad()
    def replace_B(self, B: Tensor) -> None:
        """Overwrites the adapter's B with another one (..., rows, r), keeping its type."""
        weight = self._module.lora_B[self._adapter].weight
        weight.copy_(B if len(self.shape) == 2 else B.permute(1, 2, 0).reshape(weight.shape))

    @property
    def merged(self) -> bool:
        """Whether PEFT has added the update to the weights, which leaves the factors unused."""
        return bool(self._module.merged)


@dataclass(frozen=True, eq=False)
class FullUpdate:
    """A parameter that trains directly, not through an adapter.

    Attributes:
        name: the parameter, as named in the model without adapters.
    """

    name: str
    _module: nn.Module
    _key: str

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter itself."""
        return self._module.get_parameter(self._key)


Update = LowRankUpdate | FullUpdate


def trainable_updates(model: nn.Module) -> list[Update]:
    """Every update that takes a gradient: the LoRA updates of adapted matrices, and parameters that train directly.

    Raises:
        UnsupportedModelError: an adapter whose update is not `scaling * B A` of a matrix (DoRA, AdaLoRA, IA3, LoRA of
            convolutions or embeddings), or two adapters of one matrix that train at once.
    """
    updates: list[Update] = []
    of_adapters: set[int] = set()
    for name, module in model.named_modules():
        if _is_adapted(module):
            updates += _low_rank(name, module, training=True)
            of_adapters |= _adapter_parameters(module)
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in of_adapters:
                updates.append(FullUpdate(_plain_name(f"{name}.{key}"), module, key))
    return updates


def adapter_updates(model: nn.Module) -> list[LowRankUpdate]:
    """The LoRA updates of a model's active adapter, trainable or frozen.

    Raises:
        UnsupportedModelError: an adapter whose update is not `scaling * B A` of a matrix, or two active adapters of one
            matrix.
    """
    adapted = [(name, module) for name, module in model.named_modules() if _is_adapted(module)]
    active = [(name, module) for name, module in adapted if _is_active(module)]
    return [update for name, module in active for update in _low_rank(name, module, training=False)]


def _is_adapted(module: nn.Module) -> bool:
    """Whether the module is a layer of PEFT; where PEFT was never imported, no module is."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    return tuners is not None and isinstance(module, tuners.BaseTunerLayer)


def _adapter_parameters(module: Any) -> set[int]:
    """The ids of an adapted module's own parameters, those of the wrapped layer left out."""
    wrapped = {id(parameter) for parameter in module.base_layer.parameters()}
    return {id(parameter) for parameter in module.parameters()} - wrapped


def _is_active(module: Any) -> bool:
    """Whether an active adapter has factors in this module; the module may exist for another adapter alone."""
    layers = [vars(module)["_modules"].get(key, {}) for key in module.adapter_layer_names]
    return any(name in layer for layer in layers for name in module.active_adapters)


def _low_rank(name: str, module: Any, *, training: bool) -> list[LowRankUpdate]:
    """The update of an adapted module, by its one trainable (or, with `training` false, active) adapter."""
    own = _adapter_parameters(module)
    if training and not any(parameter.requires_grad for parameter in module.parameters() if id(parameter) in own):
        return []
    qualifies = _trains if training else _is_plain
    adapters = [adapter for adapter in module.active_adapters if qualifies(module, adapter)]
    if len(adapters) != 1:
        state = "trainable" if training else "active"
        raise _unsupported(name, module, f"{len(adapters)} {state} LoRA adapters of the matrix", "one")
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
    """Whether the adapter has a pair of linear factors in this module."""
    sides = [vars(module)["_modules"].get(side, {}) for side in _SIDES]
    return all(adapter in side and isinstance(side[adapter], nn.Linear) for side in sides)


def _factor(module: Any, side: str, adapter: str) -> Tensor:
    weight: Tensor = vars(module)["_modules"][side][adapter].weight
    return weight


def _plain_name(name: str) -> str:
    return _WRAPPERS.sub("", name)


def _unsupported(name: str, module: nn.Module, got: str, expected: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the update of {_plain_name(name)} is not plain LoRA ({type(module).__name__})",
        got=got,
        expected=expected,
        remedy="train one plain LoRA adapter of linear layers or stacked experts, or the weights themselves",
    )

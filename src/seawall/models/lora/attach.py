"""LoRA adapters of PEFT on a model: put on, read as plain factors, and taken off again.

Where PEFT rewrites the names of experts' old projections (`gate_proj` of a mixture of experts), a linear layer is named
in `target_parameters` instead, so that the adapter is where it was asked for.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from seawall.artifacts.adapter import Factors, GenePoint, adapter_config, unstacked
from seawall.errors import ConfigError, UnsupportedModelError
from seawall.models.files.load import library_errors
from seawall.models.files.stream import matrices
from seawall.models.lora.merge import merge_adapter, require_peft

_ADAPTER = "default"
_OLD_NAMES = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
"""Names of linear layers in experts before transformers 5, which PEFT takes for stacks in a mixture of experts."""
_LAYER = re.compile(r"(?<!\w)(\d+)(?=\.)")


@dataclass(frozen=True, eq=False)
class Worn:
    """A model that wears one LoRA adapter.

    Attributes:
        model: the transformers model, with the adapter inside.
        points: where the adapter is.
    """

    model: PreTrainedModel
    points: Mapping[str, GenePoint]
    _wrapped: Any
    _modules: Mapping[str, Any]

    def parameters(self) -> dict[str, nn.Parameter]:
        """The factors, to train them: `NAME:A` and `NAME:B`."""
        found: dict[str, nn.Parameter] = {}
        for name, module in self._modules.items():
            found[f"{name}:A"] = module.lora_A[_ADAPTER].weight
            found[f"{name}:B"] = module.lora_B[_ADAPTER].weight
        return found

    def factors(self) -> dict[str, Factors]:
        """The factors as they are now, copied to the CPU in float32."""
        return {
            name: Factors(*(one.clone() for one in unstacked(*self._sides(module), self.points[name].shape)))
            for name, module in self._modules.items()
        }

    def put(self, factors: Mapping[str, Factors]) -> None:
        """Overwrite the factors."""
        for name, (B, A) in factors.items():
            module = self._modules[name]
            if len(self.points[name].shape) == 3:
                A, B = A.reshape(-1, A.shape[-1]), B.permute(1, 2, 0).reshape(B.shape[1], -1)
            module.lora_A[_ADAPTER].weight.data.copy_(A)
            module.lora_B[_ADAPTER].weight.data.copy_(B)

    @contextmanager
    def scaled(self, coefficients: Mapping[int, Tensor]) -> Iterator[None]:
        """Inside, the update of every decoder layer is multiplied by a number of its own, through which gradients go.

        Args:
            coefficients: decoder layer -> its number, a tensor of one element.
        """
        sides = [(self._modules[name].lora_B[_ADAPTER], point.layer) for name, point in self.points.items()]
        for side, layer in sides:
            nn.utils.parametrize.register_parametrization(side, "weight", _Times(coefficients[layer]))
        try:
            yield
        finally:
            for side, _ in sides:
                nn.utils.parametrize.remove_parametrizations(side, "weight", leave_parametrized=False)

    @contextmanager
    def taken_off(self) -> Iterator[None]:
        """Inside, the model is as it was without the adapter."""
        with self._wrapped.disable_adapter():
            yield

    def unload(self) -> PreTrainedModel:
        """The model without the adapter, for good; this object is of no use afterwards."""
        model: PreTrainedModel = self._wrapped.unload()
        return model.eval()

    @staticmethod
    def _sides(module: Any) -> tuple[Tensor, Tensor]:
        B, A = (side[_ADAPTER].weight.detach().float().cpu() for side in (module.lora_B, module.lora_A))
        return B, A


class _Times(nn.Module):
    """A factor times a number that is trained elsewhere."""

    def __init__(self, number: Tensor) -> None:
        super().__init__()
        self._number = [number]  # in a list: it is no parameter of the model

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self._number[0].to(weight.device, weight.dtype)


def find_points(model: PreTrainedModel, targets: Sequence[str] | None = None) -> dict[str, GenePoint]:
    """The weight matrices of a model that an adapter can be put on, by their names in its state dict.

    Args:
        model: on the meta device will do.
        targets: ends of the names to keep, as PEFT takes them; none keeps every linear layer and stack of experts.

    Raises:
        ConfigError: a target that the model does not have.
    """
    found = {name: one for name, one in matrices(model).items() if _LAYER.search(name)}
    for target in targets or ():
        if not any(_ends(name, target) for name in found):
            ends = sorted({".".join(name.removesuffix(".weight").split(".")[-2:]) for name in found})
            raise ConfigError(
                f"the model has no weight matrix {target}", expected=f"some of {', '.join(ends)} (gene.targets)"
            )
    stacked = any(len(one.shape) == 3 for one in found.values())
    points = {}
    for name, one in found.items():
        if targets is not None and not any(_ends(name, target) for target in targets):
            continue
        linear = name.removesuffix(".weight")
        *stack, first, second = one.shape
        points[name] = GenePoint(
            layer=_layer(name),
            shape=(*stack, second, first) if one.transposed else (*stack, first, second),
            transposed=one.transposed,
            module=linear,
            by_parameter=len(one.shape) == 3 or (stacked and linear.rpartition(".")[2] in _OLD_NAMES),
        )
    return points


def wear(model: PreTrainedModel, points: Mapping[str, GenePoint], *, rank: int, scaling: float, seed: int = 0) -> Worn:
    """Puts a new adapter on a model, which changes nothing until it is trained; the model's own weights are frozen.

    Raises:
        SeawallError: PEFT is not installed.
        UnsupportedModelError: PEFT cannot put an adapter on these matrices.
    """
    peft = require_peft()
    settings = {**adapter_config(points, rank=rank, scaling=scaling), "inference_mode": False}
    with library_errors("PEFT cannot put an adapter on this model"), _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**{key: settings[key] for key in _SETTINGS}))
    inner = wrapped.get_base_model()
    modules = dict(_adapted(peft, inner))
    if modules.keys() != points.keys():
        wrong = min(modules.keys() ^ points.keys())
        raise UnsupportedModelError(
            f"PEFT cannot put an adapter on {wrong} of this model",
            got=f"{len(modules)} adapted matrices",
            expected=f"{len(points)}",
            remedy="leave it out of gene.targets",
        )
    paths = {id(module): name for name, module in inner.named_modules()}
    placed = {name: replace(point, module=paths[id(modules[name])]) for name, point in points.items()}
    return Worn(inner.eval(), placed, wrapped, modules)


_SETTINGS = ("r", "lora_alpha", "lora_dropout", "bias", "task_type", "target_modules", "target_parameters")


def load_worn(model: PreTrainedModel, folder: Path) -> Any:
    """The model with an adapter of a folder on it, exactly as `PeftModel.from_pretrained` gives it.

    Raises:
        SeawallError: PEFT is not installed.
        UnsupportedModelError: the adapter does not fit.
    """
    peft = require_peft()
    with library_errors(f"the adapter in {folder} does not fit the model"), _quiet():
        return peft.PeftModel.from_pretrained(model, str(folder)).eval()


def merged(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """The model with an adapter's changes in its weights, which then take no gradient."""
    return merge_adapter(model, folder).requires_grad_(False)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # PEFT asks transformers for a property under its old name, and says that it adapts stacked experts.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


def _adapted(peft: Any, model: nn.Module) -> Iterator[tuple[str, Any]]:
    wrappers = peft.tuners.lora.layer.ParamWrapper
    for path, module in model.named_modules():
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            key = module.parameter_name if isinstance(module, wrappers) else "weight"
            yield f"{path.replace('.base_layer', '')}.{key}", module


def _layer(name: str) -> int:
    found = _LAYER.search(name)
    assert found is not None
    return int(found[1])


def _ends(name: str, target: str) -> bool:
    return any(one == target or one.endswith(f".{target}") for one in (name, name.removesuffix(".weight")))

"""LoRA adapters of PEFT on a model: attached, read as plain factors, disabled and detached.

PEFT rewrites `target_modules` that name the former projections of experts (`gate_proj`). A linear layer of such a name
is listed in `target_parameters` instead, so that the adapter lands on the requested layer.
"""

from __future__ import annotations

import re
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
from seawall.models.lora.merge import merge_adapter, require_peft, silence_peft

_ADAPTER = "default"
_OLD_NAMES = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
"""Names of linear layers in experts before transformers 5, which PEFT takes for stacks in a mixture of experts."""
_LAYER = re.compile(r"(?<!\w)(\d+)(?=\.)")


@dataclass(frozen=True, eq=False)
class AttachedAdapter:
    """A model with one LoRA adapter attached.

    Attributes:
        model: the transformers model, adapter modules included.
        points: the adapted weight matrices by name.
    """

    model: PreTrainedModel
    points: Mapping[str, GenePoint]
    _wrapped: Any
    _modules: Mapping[str, Any]

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable factors, as `NAME:A` and `NAME:B`."""
        parameters: dict[str, nn.Parameter] = {}
        for name, module in self._modules.items():
            parameters[f"{name}:A"] = module.lora_A[_ADAPTER].weight
            parameters[f"{name}:B"] = module.lora_B[_ADAPTER].weight
        return parameters

    def factors(self) -> dict[str, Factors]:
        """A copy of the current factors, on the CPU in float32."""
        return {
            name: Factors(*(factor.clone() for factor in unstacked(*self._sides(module), self.points[name].shape)))
            for name, module in self._modules.items()
        }

    def load_factors(self, factors: Mapping[str, Factors]) -> None:
        """Replaces the factors of the matrices named."""
        for name, (B, A) in factors.items():
            module = self._modules[name]
            if len(self.points[name].shape) == 3:
                A, B = A.reshape(-1, A.shape[-1]), B.permute(1, 2, 0).reshape(B.shape[1], -1)
            module.lora_A[_ADAPTER].weight.data.copy_(A)
            module.lora_B[_ADAPTER].weight.data.copy_(B)

    @contextmanager
    def scaled(self, coefficients: Mapping[int, Tensor]) -> Iterator[None]:
        """Inside, the update of each decoder layer is multiplied by its coefficient, through which gradients flow.

        Args:
            coefficients: decoder layer -> coefficient, a tensor of one element.
        """
        sides = [(self._modules[name].lora_B[_ADAPTER], point.layer) for name, point in self.points.items()]
        for side, layer in sides:
            nn.utils.parametrize.register_parametrization(side, "weight", _Scaled(coefficients[layer]))
        try:
            yield
        finally:
            for side, _ in sides:
                nn.utils.parametrize.remove_parametrizations(side, "weight", leave_parametrized=False)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the model computes without the adapter."""
        with self._wrapped.disable_adapter():
            yield

    def detach(self) -> PreTrainedModel:
        """Removes the adapter and returns the plain model; this object is unusable afterwards."""
        model: PreTrainedModel = self._wrapped.unload()
        return model.eval()

    @staticmethod
    def _sides(module: Any) -> tuple[Tensor, Tensor]:
        B, A = (side[_ADAPTER].weight.detach().float().cpu() for side in (module.lora_B, module.lora_A))
        return B, A


class _Scaled(nn.Module):
    """A parametrization: the weight times a coefficient that belongs to the caller."""

    def __init__(self, coefficient: Tensor) -> None:
        super().__init__()
        self._coefficient = [coefficient]  # in a list, so that it does not become a parameter of the model

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self._coefficient[0].to(weight.device, weight.dtype)


def find_points(model: PreTrainedModel, targets: Sequence[str] | None = None) -> dict[str, GenePoint]:
    """The weight matrices of a model that can take an adapter, by their names in its state dict.

    Args:
        model: may be on the meta device.
        targets: name suffixes to keep, in PEFT's notation; None keeps every linear layer and expert stack.

    Raises:
        ConfigError: no matrix of the model matches one of the targets.
    """
    candidates = {name: matrix for name, matrix in matrices(model).items() if _LAYER.search(name)}
    for target in targets or ():
        if not any(_matches(name, target) for name in candidates):
            suffixes = sorted({".".join(name.removesuffix(".weight").split(".")[-2:]) for name in candidates})
            raise ConfigError(
                f"the model has no weight matrix {target}", expected=f"some of {', '.join(suffixes)} (gene.targets)"
            )
    stacked = any(len(matrix.shape) == 3 for matrix in candidates.values())
    points = {}
    for name, matrix in candidates.items():
        if targets is not None and not any(_matches(name, target) for target in targets):
            continue
        linear = name.removesuffix(".weight")
        *stack, first, second = matrix.shape
        points[name] = GenePoint(
            layer=_layer(name),
            shape=(*stack, second, first) if matrix.transposed else (*stack, first, second),
            transposed=matrix.transposed,
            module=linear,
            by_parameter=len(matrix.shape) == 3 or (stacked and linear.rpartition(".")[2] in _OLD_NAMES),
        )
    return points


def attach_adapter(
    model: PreTrainedModel, points: Mapping[str, GenePoint], *, rank: int, scaling: float, seed: int = 0
) -> AttachedAdapter:
    """Attaches a new adapter to a model and freezes the model's own weights.

    The new update is zero, so the model's outputs change only with training.

    Args:
        model: the model; PEFT adds its modules to it.
        points: the matrices to adapt, from `find_points`.
        rank: rank of the factors.
        scaling: factor of the update `B A`.
        seed: of the initial A.

    Raises:
        SeawallError: PEFT is not installed.
        UnsupportedModelError: PEFT cannot adapt these matrices.
    """
    peft = require_peft()
    settings = {**adapter_config(points, rank=rank, scaling=scaling), "inference_mode": False}
    with library_errors("PEFT cannot adapt this model"), silence_peft(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**{key: settings[key] for key in _SETTINGS}))
    inner = wrapped.get_base_model()
    modules = dict(_adapted(peft, inner))
    if modules.keys() != points.keys():
        name = min(modules.keys() ^ points.keys())
        raise UnsupportedModelError(
            f"PEFT cannot adapt {name} of this model",
            got=f"{len(modules)} adapted matrices",
            expected=f"{len(points)}",
            remedy=f"leave {name} out of gene.targets",
        )
    paths = {id(module): name for name, module in inner.named_modules()}
    attached_points = {name: replace(point, module=paths[id(modules[name])]) for name, point in points.items()}
    return AttachedAdapter(inner.eval(), attached_points, wrapped, modules)


_SETTINGS = ("r", "lora_alpha", "lora_dropout", "bias", "task_type", "target_modules", "target_parameters")


def load_peft_model(model: PreTrainedModel, folder: Path) -> Any:
    """The model with a saved adapter attached, exactly as `PeftModel.from_pretrained` loads it.

    Raises:
        SeawallError: PEFT is not installed.
        UnsupportedModelError: the adapter does not fit the model.
    """
    peft = require_peft()
    with library_errors(f"the adapter in {folder} does not fit the model"), silence_peft():
        return peft.PeftModel.from_pretrained(model, str(folder)).eval()


def merged(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """`merge_adapter`, with every parameter frozen."""
    return merge_adapter(model, folder).requires_grad_(False)


def _adapted(peft: Any, model: nn.Module) -> Iterator[tuple[str, Any]]:
    wrappers = peft.tuners.lora.layer.ParamWrapper
    for path, module in model.named_modules():
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            key = module.parameter_name if isinstance(module, wrappers) else "weight"
            yield f"{path.replace('.base_layer', '')}.{key}", module


def _layer(name: str) -> int:
    match = _LAYER.search(name)
    assert match is not None
    return int(match[1])


def _matches(name: str, target: str) -> bool:
    paths = (name, name.removesuffix(".weight"))
    return any(path == target or path.endswith(f".{target}") for path in paths)

"""LoRA adapters as PEFT stores them: `adapter_config.json` and `adapter_model.safetensors`.

Ours hold plain matrices and stacks of experts' matrices, with one rank and one scaling for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seawall.artifacts.store import load_tensors, require, save_tensors
from seawall.runs.files import write_json

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


class Factors(NamedTuple):
    """The factors of a low-rank update `B A`: B (..., rows, r) and A (..., r, columns); `...` is E for a stack."""

    B: Tensor
    A: Tensor

    def product(self) -> Tensor:
        """The update (..., rows, columns)."""
        return self.B @ self.A


@dataclass(frozen=True, slots=True)
class GenePoint:
    """A weight matrix, or a stack of experts' matrices, that an adapter changes.

    Attributes:
        layer: decoder layer.
        shape: of the update, (rows, columns) or (E, rows, columns), in either orientation of the parameter.
        transposed: whether the model stores (..., columns, rows).
        module: PEFT's name of the module with the factors.
        by_parameter: PEFT lists it in `target_parameters`, not in `target_modules`.
    """

    layer: int
    shape: tuple[int, ...]
    transposed: bool
    module: str
    by_parameter: bool

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the parameter in the model."""
        *stack, rows, columns = self.shape
        return (*stack, columns, rows) if self.transposed else (*stack, rows, columns)


def save_adapter(folder: Path, points: Mapping[str, GenePoint], factors: Mapping[str, Factors], scaling: float) -> str:
    """Write an adapter that PEFT loads; returns the hash of its weights' file.

    Args:
        folder: of the two files; made if it is missing.
        points: by the parameter's name in the model's state dict.
        factors: of each point.
        scaling: factor of every product.
    """
    rank = next(iter(factors.values())).A.shape[-2]
    tensors: dict[str, Tensor] = {}
    for name, point in points.items():
        B, A = factors[name]
        if len(point.shape) == 3:  # PEFT stores A as (experts, r) x columns and B as rows x (r, experts)
            A, B = A.reshape(-1, A.shape[-1]), B.permute(1, 2, 0).reshape(B.shape[1], -1)
        for side, tensor in (("lora_A", A), ("lora_B", B)):
            tensors[_key(point, side)] = tensor.float()
    digest = save_tensors(folder / ADAPTER_WEIGHTS, tensors)["sha256"]
    write_json(folder / ADAPTER_CONFIG, adapter_config(points, rank=rank, scaling=scaling))
    return digest


def adapter_config(points: Mapping[str, GenePoint], *, rank: int, scaling: float) -> dict[str, Any]:
    """PEFT's settings for a LoRA adapter of exactly these points, dropout and biases off."""
    alpha = scaling * rank
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": [name.removesuffix(".weight") for name, point in points.items() if not point.by_parameter],
        "target_parameters": [name for name, point in points.items() if point.by_parameter],
    }


def load_factors(folder: Path, points: Mapping[str, GenePoint], *, sha256: str) -> dict[str, Factors]:
    """The factors that `save_adapter` wrote.

    Args:
        folder: of the adapter.
        points: of the adapter.
        sha256: hash of the weights' file.

    Raises:
        ArtifactError: the file is missing, changed, or holds other tensors.
    """
    path = folder / ADAPTER_WEIGHTS
    tensors = load_tensors(path, sha256=sha256)
    keys = {_key(point, side) for point in points.values() for side in ("lora_A", "lora_B")}
    require(set(tensors) == keys, path, "two factors of every adapter point")
    require(all(bool(tensor.isfinite().all()) for tensor in tensors.values()), path, "finite numbers")
    factors = {}
    for name, point in points.items():
        B, A = unstacked(tensors[_key(point, "lora_B")], tensors[_key(point, "lora_A")], point.shape)
        *stack, rows, columns = point.shape
        rank = A.shape[-2]
        fits = B.shape == (*stack, rows, rank) and A.shape == (*stack, rank, columns)
        require(fits, path, f"factors of an update {point.shape} at {name}")
        factors[name] = Factors(B, A)
    require(len({A.shape[-2] for _, A in factors.values()}) == 1, path, "one rank")
    return factors


def unstacked(B: Tensor, A: Tensor, shape: tuple[int, ...]) -> Factors:
    """Factors as (..., rows, r) and (..., r, columns) from PEFT's, which flatten a stack to two dimensions."""
    if len(shape) == 2:
        return Factors(B, A)
    experts, rows, columns = shape
    return Factors(B.reshape(rows, -1, experts).permute(2, 0, 1), A.reshape(experts, -1, columns))


def zero_factors(point: GenePoint, rank: int) -> Factors:
    """Factors of an update that is 0."""
    *stack, rows, columns = point.shape
    return Factors(torch.zeros(*stack, rows, rank), torch.zeros(*stack, rank, columns))


def _key(point: GenePoint, side: str) -> str:
    return f"{_PREFIX}{point.module}.{side}.weight"

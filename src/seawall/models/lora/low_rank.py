"""Trains a low-rank update of every linear layer and expert stack, in plain torch, and computes with the sum at full
speed afterwards.

PEFT is optional and adds its update in every forward pass; an attack that is trained once and evaluated often is
cheaper as weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from seawall.models.files.stream import Matrix, matrices
from seawall.models.moe.calls import frozen
from seawall.models.moe.exchange import exchanged
from seawall.models.moe.layerwise import Substitution, computed_with
from seawall.models.slices import full_slices

SCALING = 2.0
"""alpha / r, as in TamperBench's LoRA attacks (github.com/criticalml-uw/TamperBench, lora_finetune.py)."""


@final
class LowRankUpdate:
    """Trainable factors of a model's weight matrices: W + SCALING left right, rounded to the type of W."""

    def __init__(self, model: PreTrainedModel, *, rank: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._model = model
        self._substitution = Substitution()
        self._weights = {name: model.get_parameter(name).detach() for name in matrices(model)}
        self._left: dict[str, nn.Parameter] = {}
        self._right: dict[str, nn.Parameter] = {}
        for name, matrix in matrices(model).items():
            device = self._weights[name].device
            factors = [nn.Parameter(factor.to(device)) for factor in _initial(matrix, rank, generator)]
            self._left[name], self._right[name] = factors

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The factors, as `NAME:left` and `NAME:right`."""
        for name in self._weights:
            yield f"{name}:left", self._left[name]
            yield f"{name}:right", self._right[name]

    def tensors(self, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """The updated weights of these names, or all, through which gradients reach the factors."""
        return {name: self._updated(name) for name in (self._weights if names is None else names)}

    def _updated(self, name: str) -> Tensor:
        weight = self._weights[name]
        updated: Tensor = weight.float() + SCALING * (self._left[name] @ self._right[name])
        return updated.to(weight.dtype)

    @contextmanager
    def written(self) -> Iterator[None]:
        """Inside, the model's own parameters hold the updated weights; the former bits are restored on exit."""
        with torch.no_grad():
            tensors = full_slices(self.tensors())
        with exchanged(self._model, tensors):
            self._substitution.bypassed = True
            try:
                yield
            finally:
                self._substitution.bypassed = False

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Inside, the model computes with the updated weights."""
        with computed_with(self._model, self._weights, self.tensors) as self._substitution:
            yield


@contextmanager
def trainable_low_rank(model: PreTrainedModel, *, rank: int, seed: int) -> Iterator[LowRankUpdate]:
    """Inside, a new low-rank update of all decoder layers trains, and the model computes with it.

    The update begins at zero. Leaving the block, normally or by an error, restores the model.

    Args:
        model: the model.
        rank: rank of the update of each matrix, and of each expert.
        seed: of the initial factors.
    """
    with frozen(model):
        update = LowRankUpdate(model, rank=rank, seed=seed)
        with update.attached():
            yield update


def _initial(matrix: Matrix, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Factors of a zero update, as PEFT starts: the side of the inputs is uniform, the side of the outputs zero."""
    *stack, rows, columns = matrix.shape
    inputs = rows if matrix.transposed else columns
    sizes = ((*stack, rows, rank), (*stack, rank, columns))
    bound = inputs**-0.5
    uniform, zero = (sizes[0], sizes[1]) if matrix.transposed else (sizes[1], sizes[0])
    start = torch.empty(uniform).uniform_(-bound, bound, generator=generator)
    return (start, torch.zeros(zero)) if matrix.transposed else (torch.zeros(zero), start)

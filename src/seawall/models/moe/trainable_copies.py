"""Trainable copies of parts of a model's parameters, and writing them back into the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from seawall.errors import ArtifactError, UnsupportedModelError
from seawall.models.sharding import gathered, write_into
from seawall.models.slices import Slices

_TRAINABLE = (torch.float32, torch.bfloat16, torch.float16)


@final
@dataclass(frozen=True, eq=False)
class Part:
    """A parameter of the model, or slices of it along dimension 0, with a trainable copy.

    Attributes:
        name: the parameter's name in the model's state dict.
        target: the parameter itself.
        indices: the slices, in the copy's order; None for the full parameter.
    """

    name: str
    target: nn.Parameter
    indices: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the part and of its copy."""
        shape = tuple(self.target.shape)
        return shape if self.indices is None else (len(self.indices), *shape[1:])

    def read(self) -> Tensor:
        """A new tensor with the part's values in the model's dtype."""
        return Slices.copied(gathered(self.target.detach()), self.indices).tensor

    def write(self, values: Tensor) -> None:
        """Writes values into the model, rounded to its dtype; nothing outside the part changes."""
        tensor = self.target.detach()
        values = values.detach().to(device=tensor.device, dtype=tensor.dtype)
        if self.indices is None or not isinstance(tensor, DTensor):
            write_into(tensor, Slices(self.indices, values))
        else:
            full = gathered(tensor)
            write_into(full, Slices(self.indices, values))
            write_into(tensor, Slices(None, full))


class TrainableCopies:
    """Trainable copies of parts of a model, in a precision fit for small steps.

    The model's own tensors are unchanged until `write_back`; `revert` undoes it bit for bit.
    """

    def __init__(self, parts: Sequence[Part], dtype: torch.dtype) -> None:
        for part in parts:
            _require_trainable(part)
        self.parts = tuple(parts)
        self._masters = {part.name: nn.Parameter(part.read().to(dtype)) for part in parts}
        self._before: dict[str, Tensor] = {}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The copies, by the name of the copied parameter."""
        yield from self._masters.items()

    def parameters(self) -> Iterator[nn.Parameter]:
        """The copies, for an optimizer."""
        yield from self._masters.values()

    def get(self, name: str) -> nn.Parameter:
        """The copy of the parameter called `name` in the model's state dict."""
        return self._masters[name]

    @property
    def num_parameters(self) -> int:
        """Number of elements in all copies."""
        return sum(master.numel() for master in self._masters.values())

    def write_back(self) -> None:
        """Writes the copies into the model, rounded to its dtype; nothing else in the model changes."""
        for part in self.parts:
            self._before.setdefault(part.name, part.read())
            part.write(self._masters[part.name])

    def revert(self) -> None:
        """Restores the model's bits from before the first `write_back`; the copies keep their values."""
        for part in self.parts:
            if part.name in self._before:
                part.write(self._before.pop(part.name))

    def state(self) -> dict[str, Tensor]:
        """The copies' values for a checkpoint, by name; they share memory with the copies."""
        return {name: master.detach() for name, master in self._masters.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Loads the values of a checkpoint made by `state`.

        Raises:
            ArtifactError: the checkpoint holds other parameters or shapes.
        """
        _require_shapes(tensors, {name: tuple(master.shape) for name, master in self._masters.items()})
        with torch.no_grad():
            for name, master in self._masters.items():
                master.copy_(tensors[name])


def parts_of(model: PreTrainedModel, slices: Mapping[str, tuple[int, ...] | None]) -> list[Part]:
    """The parts of a model by the names of their parameters; None for a full parameter."""
    return [Part(name, model.get_parameter(name), indices) for name, indices in slices.items()]


def read_slices(loaded: tuple[PreTrainedModel, Any], slices: Mapping[str, tuple[int, ...] | None]) -> dict[str, Tensor]:
    """The values of a model's slices by name, on the CPU, read one part at a time."""
    return {part.name: part.read().cpu().contiguous() for part in parts_of(loaded[0], slices)}


def write_slices(parts: Sequence[Part], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Writes values into the model as `write_back` does, part by part, and returns the original slices on the CPU.

    Beside the model, its device holds one part at a time; the copies and their optimizers need not exist any longer.

    Args:
        parts: the parts of all copies.
        values: of every part, by name.

    Raises:
        ArtifactError: the values belong to other parameters.
    """
    _require_shapes(values, {part.name: part.shape for part in parts})
    originals = {}
    for part in parts:
        originals[part.name] = part.read().cpu().contiguous()
        part.write(values[part.name])
    return originals


def _require_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if got == expected:
        return
    name = min(name for name in {*got, *expected} if got.get(name) != expected.get(name))
    raise ArtifactError(
        f"the checkpoint belongs to other parameters: {name}",
        got=f"shape {got.get(name, 'none')}",
        expected=f"shape {expected.get(name, 'none')}",
        remedy="resume with the recipe and the selected experts of the checkpoint",
    )


def _require_trainable(part: Part) -> None:
    if part.target.dtype in _TRAINABLE and not part.target.is_meta:
        return
    raise UnsupportedModelError(
        f"{part.name} cannot be trained",
        got="no data (meta device)" if part.target.is_meta else f"dtype {part.target.dtype}",
        expected="float32, bfloat16 or float16 weights in memory",
        remedy="load the model without quantisation and without offloading",
    )

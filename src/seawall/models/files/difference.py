"""What differs between two checkpoints of one model: which experts, which routers, what else.

Both are read tensor by tensor and in blocks of rows, so that neither is ever in memory.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seawall.config.model import ModelConfig
from seawall.errors import ArtifactError
from seawall.models.files.checkpoint import TensorHeader, read_config, read_headers
from seawall.models.files.inspect import meta_model
from seawall.models.files.load import library_errors, load_architecture, require_plain_weights
from seawall.models.files.stream import opened
from seawall.models.files.tensor_roles import OTHER, TensorRole, tensor_roles
from seawall.models.moe.find import MoEModel, find_moe

_BLOCK = 2**22
"""Elements that are compared at once, more where a single row has more."""


@dataclass(frozen=True, slots=True)
class LayerDifference:
    """What changed in one MoE layer, as the Frobenius norm of the change over that of A's weights.

    Attributes:
        layer: position among the MoE layers.
        decoder_layer: position among all decoder layers.
        experts: the changed experts, all tensors of an expert taken together.
        router: the router's change; None where it is the same.
    """

    layer: int
    decoder_layer: int
    experts: Mapping[int, float]
    router: float | None


@dataclass(frozen=True, slots=True)
class CheckpointDifference:
    """Everything that differs between the checkpoints A and B.

    A tensor is changed when a bit of it is (or, where the two store it in different types, a value). Changes are
    relative: the Frobenius norm of B - A over that of A; 1 where A is zero.

    Attributes:
        layers: every MoE layer.
        others: changed tensors that are no expert's and no router's, by their names on disk.
        num_experts: E.
        tensors: how many both have.
        only_a, only_b: names that one of them lacks, such as of layers that transformers does not load.
    """

    layers: tuple[LayerDifference, ...]
    others: Mapping[str, float]
    num_experts: int
    tensors: int
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


@dataclass(slots=True)
class _Sums:
    """Of one expert, router or other tensor: squares of the change and of A's weights, and whether a bit differs."""

    change: float = 0.0
    norm: float = 0.0
    changed: bool = False

    def relative(self) -> float:
        return math.sqrt(self.change / self.norm) if self.norm else float(self.change > 0)


_Key = tuple[TensorRole, str]
"""A place, and the tensor's name where the place is `other`."""


def compare_checkpoints(a: Path, b: Path) -> CheckpointDifference:
    """Compares two checkpoint folders (config.json and safetensors) of one mixture-of-experts model.

    Raises:
        UnsupportedModelError: no mixture of experts that seawall understands; quantised or pickled weights.
        ArtifactError: damaged files, or checkpoints of different models.
    """
    moe = _outline(a)
    _require_same_model(moe, _outline(b))
    headers_a, headers_b = _headers(a), _headers(b)
    places = tensor_roles(moe, headers_a.keys() | headers_b.keys())
    _require_same_layout(headers_a, headers_b, places)
    common = sorted(headers_a.keys() & headers_b.keys())
    sums: dict[_Key, _Sums] = defaultdict(_Sums)
    with library_errors(f"the weights in {a} and {b} cannot be compared"), opened(a) as left, opened(b) as right:
        for name in common:
            _add(sums, name, places[name], (left[name], right[name]))
    changed = {key: found.relative() for key, found in sums.items() if found.changed}
    return CheckpointDifference(
        layers=_layers(moe, changed),
        others={name: moved for (place, name), moved in changed.items() if place == OTHER},
        num_experts=moe.num_experts,
        tensors=len(common),
        only_a=tuple(sorted(headers_a.keys() - headers_b.keys())),
        only_b=tuple(sorted(headers_b.keys() - headers_a.keys())),
    )


def _outline(folder: Path) -> MoEModel:
    """The model with shapes and no numbers."""
    config = ModelConfig(id=str(folder))
    return find_moe(meta_model(load_architecture(folder, config), config))


def _headers(folder: Path) -> dict[str, TensorHeader]:
    require_plain_weights(folder, read_config(folder))
    return read_headers(folder)


def _require_same_model(a: MoEModel, b: MoEModel) -> None:
    """Refuse two models that differ in a parameter's name or shape, by their configurations."""
    shapes = [{name: tuple(value.shape) for name, value in moe.model.state_dict().items()} for moe in (a, b)]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        left, right = (side.get(name, "no such tensor") for side in shapes)
        if left != right:
            raise ArtifactError(
                f"the checkpoints are of different models: {name} differs",
                got=f"{left} in A, {right} in B",
                expected="equal shapes",
                remedy="compare two checkpoints of one model, such as a base model and its repair",
            )


def _require_same_layout(
    a: Mapping[str, TensorHeader], b: Mapping[str, TensorHeader], places: Mapping[str, TensorRole]
) -> None:
    """Refuse files that cut one model into tensors in different ways. What the model does not load may differ."""
    for name, place in places.items():
        left, right = (side[name].shape if name in side else "no such tensor" for side in (a, b))
        if left != right and not (place == OTHER and "no such tensor" in (left, right)):
            raise ArtifactError(
                f"the checkpoints lay out one model in different ways: {name} differs",
                got=f"{left} in A, {right} in B",
                expected="equal tensors",
                remedy="load both in transformers and save_pretrained them anew, then compare those",
            )


def _add(sums: dict[_Key, _Sums], name: str, place: TensorRole, sides: tuple[Any, Any]) -> None:
    """Adds one tensor to what it is part of; a stack of experts goes to each of them."""
    shape = sides[0].get_shape()
    stacked = place.kind == "expert" and place.expert is None
    for start, stop in _blocks(shape, 1 if stacked else None):
        rows = slice(start, stop) if shape else ...
        here = TensorRole("expert", place.layer, start) if stacked else place
        found = sums[here, name if place == OTHER else ""]
        _add_block(found, sides[0][rows], sides[1][rows])


def _blocks(shape: list[int], rows: int | None) -> Iterator[tuple[int, int]]:
    """Where blocks of rows begin and end; a scalar is one block."""
    height = shape[0] if shape else 1
    step = rows or max(1, _BLOCK // max(1, math.prod(shape[1:])))
    return ((start, min(start + step, height)) for start in range(0, height, step))


def _add_block(found: _Sums, a: Tensor, b: Tensor) -> None:
    wide_a, wide_b = a.double(), b.double()
    found.norm += float(wide_a.square().sum())
    same = torch.equal(_bits(a), _bits(b)) if a.dtype == b.dtype else torch.equal(wide_a, wide_b)
    if not same:
        found.changed = True
        found.change += float((wide_b - wide_a).square().sum())


def _bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _layers(moe: MoEModel, changed: Mapping[_Key, float]) -> tuple[LayerDifference, ...]:
    experts: dict[int | None, dict[int, float]] = defaultdict(dict)
    routers = {}
    for (place, _), moved in changed.items():
        if place.expert is not None:
            experts[place.layer][place.expert] = moved
        elif place.kind == "router":
            routers[place.layer] = moved
    return tuple(
        LayerDifference(
            layer.index, layer.decoder_layer, dict(sorted(experts[layer.index].items())), routers.get(layer.index)
        )
        for layer in moe.layers
    )

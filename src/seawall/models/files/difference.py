"""The difference between two checkpoints of one model: which experts, routers and other tensors changed.

Both are read tensor by tensor, in blocks of rows; neither is loaded as a whole. A changed matrix that writes to the
residual stream is read once more, in one piece.
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
from seawall.models.files.abliteration import DirectionSearch, SharedDirection, residual_writers
from seawall.models.files.checkpoint import TensorHeader, read_config, read_headers
from seawall.models.files.inspect import meta_model
from seawall.models.files.load import library_errors, load_architecture, require_plain_weights
from seawall.models.files.stream import opened
from seawall.models.files.tensor_roles import OTHER, TensorRole, tensor_roles
from seawall.models.moe.find import MoEModel, find_moe

_BLOCK = 2**22
"""Elements compared at once; a row with more elements is compared as a whole."""


@dataclass(frozen=True, slots=True)
class LayerDifference:
    """The changes of one MoE layer, each as the Frobenius norm of B - A over that of A.

    Attributes:
        layer: position among the MoE layers.
        decoder_layer: position among all decoder layers.
        experts: changed expert -> its change, over all tensors of the expert.
        router: the router's change; None where the router is identical.
    """

    layer: int
    decoder_layer: int
    experts: Mapping[int, float]
    router: float | None


@dataclass(frozen=True, slots=True)
class CheckpointDifference:
    """The difference between the checkpoints A and B.

    A tensor is changed where any bit differs (or, if A and B store it in different types, any value). Changes are
    relative: the Frobenius norm of B - A over that of A; 1 where A is zero.

    Attributes:
        layers: every MoE layer, changed or not.
        others: change of every changed tensor outside experts and routers, by its name on disk.
        num_experts: E.
        tensors: number of tensors that both checkpoints hold.
        only_a, only_b: tensors that only one checkpoint holds, such as of layers that transformers does not load.
        direction: how far the changes lie along a single direction of the residual stream; None where no matrix that
            writes to it changed.
    """

    layers: tuple[LayerDifference, ...]
    others: Mapping[str, float]
    num_experts: int
    tensors: int
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    direction: SharedDirection | None = None


@dataclass(slots=True)
class _Sums:
    """Sums over one expert, router or other tensor: squares of B - A, squares of A, and whether any bit differs."""

    change: float = 0.0
    norm: float = 0.0
    changed: bool = False

    def relative(self) -> float:
        return math.sqrt(self.change / self.norm) if self.norm else float(self.change > 0)


_Key = tuple[TensorRole, str]
"""A role, and the tensor's name where the role is `other`."""


def compare_checkpoints(a: Path, b: Path) -> CheckpointDifference:
    """Compares two checkpoint folders (config.json and safetensors) of one mixture-of-experts model.

    Raises:
        UnsupportedModelError: the model is no mixture of experts that seawall supports, or its weights are quantised or
            pickled.
        ArtifactError: files are damaged, or the checkpoints belong to different models.
    """
    moe = _outline(a)
    _require_same_model(moe, _outline(b))
    headers_a, headers_b = _headers(a), _headers(b)
    roles = tensor_roles(moe, headers_a.keys() | headers_b.keys())
    _require_same_layout(headers_a, headers_b, roles)
    common = sorted(headers_a.keys() & headers_b.keys())
    sums: dict[_Key, _Sums] = defaultdict(_Sums)
    search = DirectionSearch(residual_writers(moe, {name: headers_a[name].shape for name in common}))
    what = f"the weights in {a} and {b} cannot be compared"
    with library_errors(what), opened(a) as tensors_a, opened(b) as tensors_b:
        for name in common:
            is_changed = _add(sums, name, roles[name], (tensors_a[name], tensors_b[name]))
            if is_changed and search.reads(name):
                search.add(name, tensors_a[name][...], tensors_b[name][...])
    changed = {key: total.relative() for key, total in sums.items() if total.changed}
    return CheckpointDifference(
        layers=_layers(moe, changed),
        others={name: change for (role, name), change in changed.items() if role == OTHER},
        num_experts=moe.num_experts,
        tensors=len(common),
        only_a=tuple(sorted(headers_a.keys() - headers_b.keys())),
        only_b=tuple(sorted(headers_b.keys() - headers_a.keys())),
        direction=search.result(),
    )


def _outline(folder: Path) -> MoEModel:
    """The model on the meta device."""
    config = ModelConfig(id=str(folder))
    return find_moe(meta_model(load_architecture(folder, config), config))


def _headers(folder: Path) -> dict[str, TensorHeader]:
    require_plain_weights(folder, read_config(folder))
    return read_headers(folder)


def _require_same_model(a: MoEModel, b: MoEModel) -> None:
    """Refuses models whose configurations give parameters of different names or shapes."""
    shapes = [{name: tuple(value.shape) for name, value in moe.model.state_dict().items()} for moe in (a, b)]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        shape_a, shape_b = (side.get(name, "no such tensor") for side in shapes)
        if shape_a != shape_b:
            raise ArtifactError(
                f"the checkpoints are of different models: {name} differs",
                got=f"{shape_a} in A, {shape_b} in B",
                expected="equal shapes",
                remedy="compare two checkpoints of one model, such as a base model and its repair",
            )


def _require_same_layout(
    a: Mapping[str, TensorHeader], b: Mapping[str, TensorHeader], roles: Mapping[str, TensorRole]
) -> None:
    """Refuses files that split one model into tensors differently; tensors that the model does not load may differ."""
    for name, role in roles.items():
        shape_a, shape_b = (side[name].shape if name in side else "no such tensor" for side in (a, b))
        if shape_a != shape_b and not (role == OTHER and "no such tensor" in (shape_a, shape_b)):
            raise ArtifactError(
                f"the checkpoints store one model in different layouts: {name} differs",
                got=f"{shape_a} in A, {shape_b} in B",
                expected="equal shapes",
                remedy="load both in transformers, save each with save_pretrained, and compare the new checkpoints",
            )


def _add(sums: dict[_Key, _Sums], name: str, tensor_role: TensorRole, sides: tuple[Any, Any]) -> bool:
    """Adds one tensor to the sums of its role, a stack of experts expert by expert; returns whether it changed."""
    is_changed = False
    shape = sides[0].get_shape()
    stacked = tensor_role.kind == "expert" and tensor_role.expert is None
    for start, stop in _blocks(shape, 1 if stacked else None):
        rows = slice(start, stop) if shape else ...
        role = TensorRole("expert", tensor_role.layer, start) if stacked else tensor_role
        total = sums[role, name if tensor_role == OTHER else ""]
        is_changed |= _add_block(total, sides[0][rows], sides[1][rows])
    return is_changed


def _blocks(shape: list[int], rows: int | None) -> Iterator[tuple[int, int]]:
    """(start, stop) of the blocks of rows; a scalar is one block."""
    height = shape[0] if shape else 1
    step = rows or max(1, _BLOCK // max(1, math.prod(shape[1:])))
    return ((start, min(start + step, height)) for start in range(0, height, step))


def _add_block(total: _Sums, a: Tensor, b: Tensor) -> bool:
    wide_a, wide_b = a.double(), b.double()
    total.norm += float(wide_a.square().sum())
    same = torch.equal(_bits(a), _bits(b)) if a.dtype == b.dtype else torch.equal(wide_a, wide_b)
    if not same:
        total.changed = True
        total.change += float((wide_b - wide_a).square().sum())
    return not same


def _bits(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _layers(moe: MoEModel, changed: Mapping[_Key, float]) -> tuple[LayerDifference, ...]:
    experts: dict[int | None, dict[int, float]] = defaultdict(dict)
    routers = {}
    for (role, _), change in changed.items():
        if role.expert is not None:
            experts[role.layer][role.expert] = change
        elif role.kind == "router":
            routers[role.layer] = change
    return tuple(
        LayerDifference(
            layer.index, layer.decoder_layer, dict(sorted(experts[layer.index].items())), routers.get(layer.index)
        )
        for layer in moe.layers
    )

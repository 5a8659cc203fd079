"""Detects abliteration: W' = (I - c r r^T) W with a single direction r, in the matrices that write to the residual
stream (Arditi et al. 2024, arXiv 2406.11717, section 4.1).

It is a defence: the change is detected in a checkpoint of unknown origin, and never made.

Legend: D model width, N inputs of a matrix.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from seawall.models.files.stream import matrices
from seawall.models.files.tensor_roles import load_targets
from seawall.models.moe.find import MoEModel

ALONG = 0.9
"""Minimum of the share of a change's energy in its top direction, of its cosine with the direction that all changes
share, and of its cosine with what the matrix wrote along that direction."""
LAYERS = 3
"""Minimum number of layers along the direction: a single edited layer is no abliteration."""
_ITERATIONS = 24
_LAYER = re.compile(r"\.(\d+)\.")


class Writer(NamedTuple):
    """A tensor that writes to the residual stream; `transposed`: its last dimension is D, not the one before.

    `layer` is the decoder layer; None for the embedding.
    """

    layer: int | None
    transposed: bool


@dataclass(frozen=True, slots=True)
class SharedDirection:
    """How far the changes of two checkpoints lie along a single direction of the residual stream.

    Attributes:
        abliterated: at least half of the changed layers, and at least `LAYERS`, lost a single shared direction.
        layers: decoder layers with a changed matrix that writes to the residual stream.
        layers_along: those whose changed matrices, by half or more, lost the shared direction.
        share: share of a change's energy in its top direction, median over matrices.
        agreement: absolute cosine of a change's top direction with the shared direction, median over matrices.
        removed: share of what a matrix wrote along its top direction that is gone, median over matrices; 1: all of it.
        embedding: whether the embedding lost the shared direction too.
    """

    abliterated: bool
    layers: int
    layers_along: int
    share: float
    agreement: float
    removed: float
    embedding: bool


@dataclass(frozen=True, eq=False)
class _Change:
    """The change of one matrix: its top direction (D,), and how the change lies along it.

    Attributes:
        alignment: cosine of what the change takes away along the direction with what the matrix wrote along it.
    """

    layer: int | None
    direction_D: Tensor
    share: float
    removed: float
    alignment: float


@final
class DirectionSearch:
    """Collects the changed matrices of two checkpoints, one tensor at a time."""

    def __init__(self, writers: Mapping[str, Writer]) -> None:
        self._writers = writers
        self._changes: list[_Change] = []

    def reads(self, name: str) -> bool:
        """Whether the tensor writes to the residual stream."""
        return name in self._writers

    def add(self, name: str, a: Tensor, b: Tensor) -> None:
        """Adds a tensor, or a stack of them, of both checkpoints; unchanged ones are left out."""
        writer = self._writers[name]
        for matrix_a, matrix_b in zip(_matrices(a, writer), _matrices(b, writer), strict=True):
            change = _change(writer.layer, matrix_a.float(), matrix_b.float())
            if change is not None:
                self._changes.append(change)

    def result(self) -> SharedDirection | None:
        """The direction that the changes share; None if no matrix of a decoder layer changed."""
        inside = [change for change in self._changes if change.layer is not None]
        if not inside:
            return None
        shared_D = _shared(inside)
        by_layer: dict[int | None, list[bool]] = defaultdict(list)
        for change in self._changes:
            by_layer[change.layer].append(_is_along(change, shared_D))
        embedding = by_layer.pop(None, [False])
        along = sum(2 * sum(members) >= len(members) for members in by_layer.values())
        return SharedDirection(
            abliterated=along >= LAYERS and 2 * along >= len(by_layer),
            layers=len(by_layer),
            layers_along=along,
            share=median(change.share for change in inside),
            agreement=median(_cosine(change.direction_D, shared_D) for change in inside),
            removed=median(change.removed for change in inside),
            embedding=all(embedding),
        )


def residual_writers(moe: MoEModel, shapes: Mapping[str, Sequence[int]]) -> dict[str, Writer]:
    """The tensors on disk that write to the residual stream: matrices with D outputs, and the embedding.

    A matrix with D inputs and D outputs counts too, though it may only read the stream.

    Args:
        moe: the model; may be on the meta device.
        shapes: shape of every tensor, by its name in the checkpoint's files.
    """
    embedding = moe.model.get_input_embeddings().weight
    own_matrices = matrices(moe.model)
    embedding_names = {
        name for name, tensor in moe.model.named_parameters(remove_duplicate=False) if tensor is embedding
    }
    width = int(embedding.shape[-1])
    writers = {}
    for name, target in load_targets(moe.model, shapes).items():
        layer = _LAYER.search(target.name)
        if target.name in embedding_names:
            writers[name] = Writer(None, True)
        elif target.name in own_matrices and layer is not None:
            # Tensors that a converter stacks or joins are matrices of linear layers on disk: (outputs, inputs).
            transposed = own_matrices[target.name].transposed and target.converter is None
            if shapes[name][-1 if transposed else -2] == width:
                writers[name] = Writer(int(layer[1]), transposed)
    return writers


def _matrices(tensor: Tensor, writer: Writer) -> Iterator[Float[Tensor, "D N"]]:
    stack = tensor if tensor.ndim == 3 else tensor.unsqueeze(0)
    return (matrix.mT if writer.transposed else matrix for matrix in stack)


def _change(layer: int | None, a_DN: Tensor, b_DN: Tensor) -> _Change | None:
    change_DN = b_DN - a_DN
    energy = float(change_DN.square().sum())
    if not 0 < energy < float("inf"):
        return None
    direction_D = _top_direction(change_DN)
    moved_N, wrote_N = direction_D @ change_DN, direction_D @ a_DN
    written = max(float(wrote_N.square().sum()), torch.finfo(torch.float32).tiny)
    moved = float(moved_N.square().sum())
    lost = -float(moved_N @ wrote_N)
    return _Change(
        layer=layer,
        direction_D=direction_D,
        share=moved / energy,
        removed=lost / written,
        alignment=lost / max((moved * written) ** 0.5, torch.finfo(torch.float32).tiny),
    )


def _top_direction(matrix_DN: Tensor) -> Tensor:
    """The top left singular vector, by power iteration; what it misses of the top energy lowers the share."""
    direction_D = torch.randn(matrix_DN.shape[0], generator=torch.Generator().manual_seed(0))
    for _ in range(_ITERATIONS):
        direction_D = matrix_DN @ (direction_D @ matrix_DN)
        direction_D = direction_D / direction_D.norm().clamp_min(torch.finfo(torch.float32).tiny)
    return direction_D


def _shared(changes: Sequence[_Change]) -> Tensor:
    """The direction that the changes of one direction share, or all changes where none has one."""
    single = [change for change in changes if change.share >= ALONG] or changes
    return _top_direction(torch.stack([change.direction_D for change in single], dim=1))


def _is_along(change: _Change, shared_D: Tensor) -> bool:
    return min(change.share, change.alignment, _cosine(change.direction_D, shared_D)) >= ALONG


def _cosine(a_D: Tensor, b_D: Tensor) -> float:
    return abs(float(a_D @ b_D))

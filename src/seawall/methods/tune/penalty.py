"""The AsFT penalty: what of an update lies outside the directions of alignment. arXiv 2506.08473, section 3.

For an update dW of a weight matrix it is ||(I - C) dW||_F^2 with C = U diag(c) U^T from the anchor: U the directions in
which alignment wrote, c = 1 for a projector. Of LoRA, dW = B A (without alpha / r, as the authors' code has it), it is

    ||(I - C) B A||_F^2 = tr((R^T R) (A A^T))    with R = B - U diag(c) (U^T B)

at a cost of O(rows k r + columns r^2): nothing of the size of the matrix is formed. R is formed and not the difference
of two Gram matrices, which would lose its digits where the update lies almost within the directions. All is computed
in float32, whatever the factors' type and whether autocast is on.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from seawall.artifacts.anchor import Anchor, AnchorMatrix
from seawall.errors import ConfigError
from seawall.models.lora.updates import FullUpdate, LowRankUpdate, Update

_Any = TypeVar("_Any", bound=Update)
Projector = Literal["subspace", "reference", "l2", "random"]
"""`subspace`: the anchor's directions. `reference`: the authors' code, C = V V^T / ||V||_F, exact where the anchor
keeps every direction. Controls: `l2`, no direction is safe, plain ||dW||^2; `random`, as many random directions."""


class Projection(NamedTuple):
    """C = U diag(c) U^T: `basis` U (..., rows, k) and `shares` c (..., k)."""

    basis: Tensor
    shares: Tensor

    def outside(self, update: Tensor) -> Tensor:
        """(I - C) X of X (..., rows, n)."""
        return update - self.inside(update)

    def inside(self, update: Tensor) -> Tensor:
        """C X of X (..., rows, n)."""
        return self.basis @ (self.shares.unsqueeze(-1) * (self.basis.mT @ update))

    def to(self, device: torch.device) -> Projection:
        """The same on a device."""
        return Projection(self.basis.to(device), self.shares.to(device))


def _subspace(matrix: AnchorMatrix, generator: torch.Generator) -> Projection:
    return Projection(matrix.basis, (matrix.singular_values > 0).float())


def _reference(matrix: AnchorMatrix, generator: torch.Generator) -> Projection:
    """V V^T / ||V||_F = U diag(s^2 / ||V||_F) U^T; its limit for V = 0 is 0."""
    norm = matrix.norm.clamp_min(torch.finfo(torch.float32).tiny)
    return Projection(matrix.basis, matrix.singular_values.square() / norm.unsqueeze(-1))


def _l2(matrix: AnchorMatrix, generator: torch.Generator) -> Projection:
    return Projection(matrix.basis[..., :0], matrix.singular_values[..., :0])


def _random(matrix: AnchorMatrix, generator: torch.Generator) -> Projection:
    drawn = torch.randn(matrix.basis.shape, generator=generator)
    return Projection(torch.linalg.qr(drawn).Q, (matrix.singular_values > 0).float())


PROJECTORS: Mapping[Projector, Callable[[AnchorMatrix, torch.Generator], Projection]] = {
    "subspace": _subspace,
    "reference": _reference,
    "l2": _l2,
    "random": _random,
}


StartingWeights = Callable[[str], Tensor]
"""The weight of a name before training, as the model stores it; any float type and device."""


class Penalty:
    """The sum of the penalties of all updates of a model, weighted 1.

    Args:
        anchor: of the model.
        updates: what trains, as `penalised` chose it.
        projector: which C.
        scaled: take LoRA's update with PEFT's factor (alpha / r), as it is added to the weights. The published weight
            of 1 belongs to the unscaled one.
        seed: of the random directions.
        start: the weights before training; needed where whole matrices train.
    """

    def __init__(
        self,
        anchor: Anchor,
        updates: Sequence[Update],
        *,
        projector: Projector = "subspace",
        scaled: bool = False,
        seed: int = 0,
        start: StartingWeights | None = None,
    ) -> None:
        self._anchor, self._updates, self._scaled, self._start = anchor, tuple(updates), scaled, start
        self._projections = {one.name: projection(anchor, one.name, projector, seed) for one in updates}

    def __call__(self) -> Tensor:
        """The penalty now (), float32, for autograd: nothing is averaged, neither over matrices nor over tokens."""
        parts = [self._of(update) for update in self._updates]
        return torch.stack([part.to(parts[0].device) for part in parts]).sum()

    def _of(self, update: Update) -> Tensor:
        if isinstance(update, LowRankUpdate):
            B, A = update.factors()
            value = low_rank_penalty(self._on(update.name, B.device), B, A)
            return value * update.scaling**2 if self._scaled else value
        return self._of_whole(update)

    def _of_whole(self, update: FullUpdate) -> Tensor:
        """Autograd keeps nothing of the matrix's size: it computes the difference anew on its way back."""
        parameter, start = update.parameter, self._start
        assert start is not None
        projection = self._on(update.name, parameter.device)
        transposed = self._anchor.matrices[update.name].transposed

        def value(weight: Tensor) -> Tensor:
            return whole_penalty(projection, weight, start(update.name), transposed=transposed)

        computed: Tensor = checkpoint(value, parameter, use_reentrant=False, preserve_rng_state=False)
        return computed

    def _on(self, name: str, device: torch.device) -> Projection:
        if self._projections[name].basis.device != device:
            self._projections[name] = self._projections[name].to(device)
        return self._projections[name]


def low_rank_penalty(projection: Projection, B: Tensor, A: Tensor) -> Tensor:
    """||(I - C) B A||_F^2 (), summed over experts.

    Args:
        projection: C.
        B: (..., rows, r), any float type.
        A: (..., r, columns).
    """
    with torch.autocast(B.device.type, enabled=False):
        outside, wide = projection.outside(B.float()), A.float()
        return ((outside.mT @ outside) * (wide @ wide.mT)).sum()


def whole_penalty(projection: Projection, weight: Tensor, start: Tensor, *, transposed: bool = False) -> Tensor:
    """||(I - C) (W - W0)||_F^2 (), summed over experts.

    Args:
        projection: C.
        weight: W as the model stores it.
        start: W0, likewise.
        transposed: whether the model stores W^T.
    """
    with torch.autocast(weight.device.type, enabled=False):
        change = weight.float() - start.to(weight.device).float()
        return projection.outside(change.mT if transposed else change).square().sum()


def penalised(anchor: Anchor, updates: Sequence[_Any]) -> list[_Any]:
    """The updates that the anchor has something to say about: every adapter's, and those of whole matrices it holds.

    Raises:
        ConfigError: an adapter of matrices that the anchor lacks; matrices of other shapes; nothing to penalise.
    """
    adapted = [one for one in updates if isinstance(one, LowRankUpdate)]
    lacking = [one.name for one in adapted if one.name not in anchor.matrices]
    if lacking:
        raise ConfigError(
            "the adapter changes matrices that the anchor lacks",
            got=f"{len(lacking)} of {len(adapted)}, {lacking[0]} first",
            expected="matrices of the anchor, such as " + next(iter(anchor.matrices), "none"),
            remedy="make the anchor with these targets, or leave them out of target_modules",
        )
    chosen = [one for one in updates if one.name in anchor.matrices]
    if not chosen:
        raise ConfigError(
            "nothing that trains is in the anchor",
            got=f"{len(updates)} trainable parameters" + (f", {updates[0].name} first" if updates else ""),
            expected="matrices of the anchor, such as " + next(iter(anchor.matrices), "none"),
            remedy="add an adapter, or let these matrices train",
        )
    for one in chosen:
        _require_shape(anchor.matrices[one.name], one)
    return chosen


def _require_shape(matrix: AnchorMatrix, update: Update) -> None:
    if isinstance(update, LowRankUpdate):
        got, expected = update.shape, (*matrix.basis.shape[:-1], matrix.columns)
    else:
        got, expected = tuple(update.parameter.shape), matrix.stored_shape
    if got != expected:
        raise ConfigError(
            f"the anchor is of another model: {update.name} differs",
            got=f"{got} in the model",
            expected=f"{expected} by the anchor",
            remedy="make the anchor from this model's own checkpoint and its base",
        )


def projection(anchor: Anchor, name: str, projector: Projector, seed: int) -> Projection:
    """C of one of the anchor's matrices; the seed and the name alone decide what is random in it."""
    generator = torch.Generator().manual_seed((seed + zlib.crc32(name.encode())) % 2**63)
    return PROJECTORS[projector](anchor.matrices[name], generator)

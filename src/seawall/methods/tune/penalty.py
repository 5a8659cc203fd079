"""The AsFT penalty: the part of an update outside the alignment directions. arXiv 2506.08473, section 3.

For an update dW of a weight matrix it is ||(I - C) dW||_F^2 with C = U diag(c) U^T from the anchor: U are the alignment
directions, and c = 1 for a projector. For LoRA, dW = B A (without alpha / r, as in the authors' code), it is

    ||(I - C) B A||_F^2 = tr((R^T R) (A A^T))    with R = B - U diag(c) (U^T B)

at a cost of O(rows k r + columns r^2); no matrix of the weight's size is formed. R is formed rather than the difference
of two Gram matrices, which would lose precision for updates almost within the directions. Everything is computed in
float32, for factors of any type and under autocast.
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

_UpdateT = TypeVar("_UpdateT", bound=Update)
Projector = Literal["subspace", "reference", "l2", "random"]
"""`subspace`: the projector on the anchor's directions. `reference`: the authors' code, C = V V^T / ||V||_F, exact if
the anchor keeps every direction. Controls: `l2`, C = 0, plain ||dW||^2; `random`, the same number of random
directions."""


class Projection(NamedTuple):
    """C = U diag(c) U^T: `basis` U (..., rows, k) and `shares` c (..., k)."""

    basis: Tensor
    shares: Tensor

    def outside(self, update: Tensor) -> Tensor:
        """(I - C) X for X (..., rows, n)."""
        return update - self.inside(update)

    def inside(self, update: Tensor) -> Tensor:
        """C X for X (..., rows, n)."""
        return self.basis @ (self.shares.unsqueeze(-1) * (self.basis.mT @ update))

    def to(self, device: torch.device) -> Projection:
        """A copy on a device."""
        return Projection(self.basis.to(device), self.shares.to(device))


def _subspace(matrix: AnchorMatrix, generator: torch.Generator) -> Projection:
    return Projection(matrix.basis, (matrix.singular_values > 0).float())


def _reference(matrix: AnchorMatrix, generator: torch.Generator) -> Projection:
    """V V^T / ||V||_F = U diag(s^2 / ||V||_F) U^T, and 0 for V = 0."""
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
"""Parameter name -> the weight before training as the model stores it, of any float type, on any device."""


class Penalty:
    """The sum of the penalties of a model's updates, with weight 1.

    Args:
        anchor: of the model.
        updates: the updates to penalise, from `penalised`.
        projector: choice of C.
        scaled: use LoRA's update with PEFT's factor alpha / r, as it is added to the weights. The published weight of 1
            is for the unscaled update.
        seed: of the random directions.
        start: weights before training; needed for fully trained matrices.
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
        self._projections = {update.name: projection(anchor, update.name, projector, seed) for update in updates}

    def __call__(self) -> Tensor:
        """The current penalty (), float32, for autograd: a sum over matrices, not a mean."""
        parts = [self._of(update) for update in self._updates]
        return torch.stack([part.to(parts[0].device) for part in parts]).sum()

    def _of(self, update: Update) -> Tensor:
        if isinstance(update, LowRankUpdate):
            B, A = update.factors()
            value = low_rank_penalty(self._on(update.name, B.device), B, A)
            return value * update.scaling**2 if self._scaled else value
        return self._of_full(update)

    def _of_full(self, update: FullUpdate) -> Tensor:
        """Checkpointed: autograd recomputes the difference in the backward pass and stores no matrix."""
        parameter, start = update.parameter, self._start
        assert start is not None
        projection = self._on(update.name, parameter.device)
        transposed = self._anchor.matrices[update.name].transposed

        def value(weight: Tensor) -> Tensor:
            return full_penalty(projection, weight, start(update.name), transposed=transposed)

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
        R, A = projection.outside(B.float()), A.float()
        return ((R.mT @ R) * (A @ A.mT)).sum()


def full_penalty(projection: Projection, weight: Tensor, start: Tensor, *, transposed: bool = False) -> Tensor:
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


def penalised(anchor: Anchor, updates: Sequence[_UpdateT]) -> list[_UpdateT]:
    """The updates of matrices in the anchor: every adapter's update must be among them, other parameters need not.

    Raises:
        ConfigError: an adapter of a matrix that the anchor lacks; a matrix of another shape; no update to penalise.
    """
    adapted = [update for update in updates if isinstance(update, LowRankUpdate)]
    lacking = [update.name for update in adapted if update.name not in anchor.matrices]
    if lacking:
        raise ConfigError(
            "the adapter changes matrices that the anchor lacks",
            got=f"{len(lacking)} of {len(adapted)}, {lacking[0]} first",
            expected="matrices of the anchor, such as " + next(iter(anchor.matrices), "none"),
            remedy="make the anchor with these targets, or remove them from target_modules",
        )
    chosen = [update for update in updates if update.name in anchor.matrices]
    if not chosen:
        raise ConfigError(
            "no trained parameter is in the anchor",
            got=f"{len(updates)} trainable parameters" + (f", {updates[0].name} first" if updates else ""),
            expected="matrices of the anchor, such as " + next(iter(anchor.matrices), "none"),
            remedy="add an adapter, or train matrices of the anchor",
        )
    for update in chosen:
        _require_shape(anchor.matrices[update.name], update)
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
            expected=f"{expected} in the anchor",
            remedy="make the anchor from this model's own checkpoint and its base",
        )


def projection(anchor: Anchor, name: str, projector: Projector, seed: int) -> Projection:
    """C of one of the anchor's matrices; random directions depend on seed and name alone."""
    generator = torch.Generator().manual_seed((seed + zlib.crc32(name.encode())) % 2**63)
    return PROJECTORS[projector](anchor.matrices[name], generator)

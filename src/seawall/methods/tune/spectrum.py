"""The leading left singular vectors of a matrix, by the cheaper of two algorithms."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_OVERSAMPLING = 10
_POWER_STEPS = 4
_MIN_RATIO = 4
"""The randomised algorithm is used where the matrix's shorter side is at least this many times the sketch size."""
_FIRST_SIZE = 32


class LeadingDirections(NamedTuple):
    """U (rows, k) and S (k) of a matrix, and its Frobenius norm (); k is 0 for a zero matrix."""

    basis: Tensor
    singular_values: Tensor
    norm: Tensor


def leading_directions(
    matrix: Tensor, *, rank: int | None, energy: float | None, generator: torch.Generator
) -> LeadingDirections:
    """The leading left singular vectors and values of a float32 matrix (rows, columns).

    Randomised subspace iteration (Halko et al., arXiv 0909.4061, algorithm 4.4) for few directions, otherwise an
    eigendecomposition of the smaller Gram matrix in float64. Memory beyond the matrix: a sketch, or four float64
    squares of the shorter side.

    Args:
        matrix: the matrix to decompose.
        rank: maximum number of directions; None for all.
        energy: keep the fewest directions with this share of the squared norm; None keeps `rank`.
        generator: of the sketch, on the matrix's device.
    """
    norm = torch.linalg.vector_norm(matrix, dim=-1).double().norm()
    if float(norm) == 0.0:
        return LeadingDirections(matrix.new_zeros(matrix.shape[0], 0), matrix.new_zeros(0), norm.float())
    basis, values = _decompose(matrix, rank, energy, float(norm), generator)
    k = min(_rank_for_energy(values, energy, float(norm)), len(values) if rank is None else rank)
    return LeadingDirections(basis[:, :k].contiguous(), values[:k].contiguous(), norm.float())


def _decompose(
    matrix: Tensor, rank: int | None, energy: float | None, norm: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """At least the required directions; the sketch doubles until it holds the required energy."""
    shorter = min(matrix.shape)
    size = _FIRST_SIZE if energy is not None else rank or shorter
    while True:
        count = size if rank is None else min(size, rank)
        if (count + _OVERSAMPLING) * _MIN_RATIO > shorter:
            return _exact(matrix)
        basis, values = _randomised(matrix, count, generator)
        if count == rank or _rank_for_energy(values, energy, norm) < count:
            return basis, values
        size *= 2


def _rank_for_energy(values: Tensor, energy: float | None, norm: float) -> int:
    """The number of leading singular values that hold the energy; all of them where they hold less."""
    if energy is None:
        return len(values)
    cumulative = values.double().square().cumsum(0)
    goal = min(energy * norm**2, float(cumulative[-1]))  # with rounding, the sum may stay below 1.0 x norm^2
    return int((cumulative < goal).sum()) + 1 if energy < 1.0 else len(values)


def _randomised(matrix: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    shape = (matrix.shape[1], size + _OVERSAMPLING)
    sketch = matrix @ torch.randn(shape, generator=generator, device=matrix.device, dtype=matrix.dtype)
    basis = torch.linalg.qr(sketch).Q
    for _ in range(_POWER_STEPS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.mT @ basis).Q).Q
    inner, values, _ = torch.linalg.svd(basis.mT @ matrix, full_matrices=False)
    significant = _significant(values, matrix)
    return (basis @ inner)[:, : min(significant, size)], values[: min(significant, size)]


def _exact(matrix: Tensor) -> tuple[Tensor, Tensor]:
    wide = matrix.shape[0] <= matrix.shape[1]
    factor = matrix.double()
    gram = factor @ factor.mT if wide else factor.mT @ factor
    squares, vectors = torch.linalg.eigh(gram)
    values = squares.clamp_min(0.0).sqrt().flip(0)
    significant = _significant(values, matrix)
    values, vectors = values[:significant], vectors.flip(1)[:, :significant]
    basis = vectors if wide else torch.linalg.qr(factor @ vectors / values).Q
    if not wide:  # QR leaves the sign of every column open
        basis = basis * (basis * (factor @ vectors)).sum(0).sign()
    return basis.float(), values.float()


def _significant(values: Tensor, matrix: Tensor) -> int:
    """The number of singular values above the rounding error of a float32 decomposition."""
    limit = values[0] * max(matrix.shape) * torch.finfo(torch.float32).eps
    return int((values > limit).sum())

"""The leading left singular vectors of a matrix, by whichever way is cheaper."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_OVERSAMPLING = 10
_POWER_STEPS = 4
_PAYS = 4
"""The randomised way pays where the matrix's shorter side is this many times the number of directions sought."""
_FIRST = 32


class Directions(NamedTuple):
    """U (rows, k) and S (k) of a matrix, and its Frobenius norm (); k is 0 where the matrix is zero."""

    basis: Tensor
    singular_values: Tensor
    norm: Tensor


def leading_directions(
    matrix: Tensor, *, rank: int | None, energy: float | None, generator: torch.Generator
) -> Directions:
    """The leading left singular vectors and values of a float32 matrix (rows, columns).

    Randomised subspace iteration (Halko et al., arXiv 0909.4061, algorithm 4.4) where few directions are sought, an
    eigendecomposition of the smaller Gram matrix in float64 elsewhere. The former needs the memory of a sketch beside
    the matrix, the latter four squares of its shorter side in float64.

    Args:
        matrix: what is decomposed.
        rank: how many to keep, at most.
        energy: keep the fewest that hold this part of the squared norm; None keeps `rank`.
        generator: of the sketch, on the matrix's device.
    """
    norm = torch.linalg.vector_norm(matrix, dim=-1).double().norm()
    if float(norm) == 0.0:
        return Directions(matrix.new_zeros(matrix.shape[0], 0), matrix.new_zeros(0), norm.float())
    basis, values = _decomposed(matrix, rank, energy, float(norm), generator)
    kept = min(_enough(values, energy, float(norm)), len(values) if rank is None else rank)
    return Directions(basis[:, :kept].contiguous(), values[:kept].contiguous(), norm.float())


def _decomposed(
    matrix: Tensor, rank: int | None, energy: float | None, norm: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """At least as many directions as are wanted; a sketch grows until it holds the wanted energy."""
    shorter = min(matrix.shape)
    size = _FIRST if energy is not None else rank or shorter
    while True:
        wanted = size if rank is None else min(size, rank)
        if (wanted + _OVERSAMPLING) * _PAYS > shorter:
            return _exact(matrix)
        basis, values = _randomised(matrix, wanted, generator)
        if wanted == rank or _enough(values, energy, norm) < wanted:
            return basis, values
        size *= 2


def _enough(values: Tensor, energy: float | None, norm: float) -> int:
    """How many of these singular values hold the energy; all where they do not."""
    if energy is None:
        return len(values)
    held = values.double().square().cumsum(0)
    goal = min(energy * norm**2, float(held[-1]))  # rounding must not make 1.0 of the energy out of reach
    return int((held < goal).sum()) + 1 if energy < 1.0 else len(values)


def _randomised(matrix: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    shape = (matrix.shape[1], size + _OVERSAMPLING)
    sketch = matrix @ torch.randn(shape, generator=generator, device=matrix.device, dtype=matrix.dtype)
    basis = torch.linalg.qr(sketch).Q
    for _ in range(_POWER_STEPS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.mT @ basis).Q).Q
    inner, values, _ = torch.linalg.svd(basis.mT @ matrix, full_matrices=False)
    found = _significant(values, matrix)
    return (basis @ inner)[:, : min(found, size)], values[: min(found, size)]


def _exact(matrix: Tensor) -> tuple[Tensor, Tensor]:
    wide = matrix.shape[0] <= matrix.shape[1]
    factor = matrix.double()
    gram = factor @ factor.mT if wide else factor.mT @ factor
    squares, vectors = torch.linalg.eigh(gram)
    values = squares.clamp_min(0.0).sqrt().flip(0)
    found = _significant(values, matrix)
    values, vectors = values[:found], vectors.flip(1)[:, :found]
    basis = vectors if wide else torch.linalg.qr(factor @ vectors / values).Q
    if not wide:  # QR leaves the sign of every column open
        basis = basis * (basis * (factor @ vectors)).sum(0).sign()
    return basis.float(), values.float()


def _significant(values: Tensor, matrix: Tensor) -> int:
    """How many singular values are more than the rounding of a float32 decomposition."""
    limit = values[0] * max(matrix.shape) * torch.finfo(torch.float32).eps
    return int((values > limit).sum())

"""Anchors made in memory, and the penalty as the formula says it, in float64."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from seawall.artifacts.anchor import Anchor, AnchorMatrix, TokenizerFacts
from seawall.models.files.stream import Matrix


def matrix_of(V: Tensor, *, rank: int | None = None, transposed: bool = False) -> AnchorMatrix:
    """The anchor of a difference V (..., rows, columns)."""
    U, S, _ = torch.linalg.svd(V.double(), full_matrices=False)
    return AnchorMatrix(
        basis=U[..., :rank].float(),
        singular_values=S[..., :rank].float(),
        norm=V.double().square().sum((-2, -1)).sqrt().float(),
        columns=V.shape[-1],
        transposed=transposed,
    )


def anchor_of(matrices: Mapping[str, AnchorMatrix]) -> Anchor:
    return Anchor("sha256:aligned", "sha256:base", TokenizerFacts("a", "a", 1, 1), matrices)


def random_anchor(found: Mapping[str, Matrix], *, rank: int = 3, seed: int = 0) -> Anchor:
    """Random directions for these matrices of a model."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(one: Matrix) -> AnchorMatrix:
        V = torch.randn(one.shape, generator=generator)
        return matrix_of(V.mT if one.transposed else V, rank=rank, transposed=one.transposed)

    return anchor_of({name: drawn(one) for name, one in found.items()})


def dense(matrix: AnchorMatrix, update: Tensor) -> Tensor:
    """||(I - U U^T) dW||_F^2 with the projector formed, in float64."""
    U, dW = matrix.basis.double(), update.double()
    outside: Tensor = (torch.eye(matrix.rows, dtype=torch.float64) - U @ U.mT) @ dW
    return outside.square().sum()

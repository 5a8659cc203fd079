"""Singular vectors are those of torch.linalg.svd, whichever way they are found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import seawall.methods.tune.spectrum as module
from seawall.methods.tune.spectrum import leading_directions


def decaying(rows: int, columns: int, *, seed: int = 0) -> Tensor:
    """A matrix whose singular values fall by a fifth from one to the next."""
    generator = torch.Generator().manual_seed(seed)
    size = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, size, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(columns, size, generator=generator)).Q
    values = 3.0 * torch.logspace(0, size - 1, size, base=0.8)
    made: Tensor = left * values @ right.mT
    return made


def drawn() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize(("rows", "columns"), [(20, 30), (30, 20), (120, 90), (90, 120)])
def test_both_ways_find_the_leading_directions(rows: int, columns: int) -> None:
    matrix = decaying(rows, columns)
    U, S, _ = torch.linalg.svd(matrix, full_matrices=False)
    found = leading_directions(matrix, rank=8, energy=None, generator=drawn())
    torch.testing.assert_close(found.singular_values, S[:8], rtol=1e-4, atol=0)
    torch.testing.assert_close(found.basis.mT @ found.basis, torch.eye(8), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.basis @ found.basis.mT, U[:, :8] @ U[:, :8].mT, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.norm, matrix.norm())


def test_a_large_matrix_is_sketched_and_a_small_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    ways: list[str] = []

    def noted(way: str) -> Callable[..., tuple[Tensor, Tensor]]:
        original: Callable[..., tuple[Tensor, Tensor]] = getattr(module, way)

        def call(*args: Any) -> tuple[Tensor, Tensor]:
            ways.append(way)
            return original(*args)

        return call

    for way in ("_exact", "_randomised"):
        monkeypatch.setattr(module, way, noted(way))
    leading_directions(decaying(90, 120), rank=4, energy=None, generator=drawn())
    leading_directions(decaying(20, 30), rank=4, energy=None, generator=drawn())
    leading_directions(decaying(90, 120), rank=None, energy=1.0, generator=drawn())
    leading_directions(decaying(400, 300), rank=None, energy=0.9, generator=drawn())
    assert ways == ["_randomised", "_exact", "_exact", "_randomised"]


@pytest.mark.parametrize("shape", [(20, 30), (400, 300)])
@pytest.mark.parametrize("energy", [0.3, 0.9, 0.999])
def test_energy_keeps_the_fewest_directions(shape: tuple[int, int], energy: float) -> None:
    matrix = decaying(*shape)
    held = torch.linalg.svdvals(matrix).square().cumsum(0) / matrix.square().sum()
    expected = int((held < energy).sum()) + 1
    found = leading_directions(matrix, rank=None, energy=energy, generator=drawn())
    assert len(found.singular_values) == expected
    capped = leading_directions(matrix, rank=2, energy=energy, generator=drawn())
    assert len(capped.singular_values) == min(2, expected)


def test_all_of_the_energy_is_the_whole_column_space_and_no_more() -> None:
    matrix = decaying(12, 30)[:, :3] @ torch.randn(3, 30, generator=drawn())
    found = leading_directions(matrix, rank=None, energy=1.0, generator=drawn())
    assert found.basis.shape == (12, 3)
    torch.testing.assert_close(found.basis @ (found.basis.mT @ matrix), matrix, rtol=1e-4, atol=1e-5)


def test_a_zero_matrix_has_no_direction() -> None:
    found = leading_directions(torch.zeros(5, 7), rank=3, energy=None, generator=drawn())
    assert (found.basis.shape, found.singular_values.shape, float(found.norm)) == ((5, 0), (0,), 0.0)


def test_the_same_seed_gives_the_same_bits() -> None:
    matrix = decaying(90, 120)
    once, again = (leading_directions(matrix, rank=4, energy=None, generator=drawn()) for _ in range(2))
    assert torch.equal(once.basis, again.basis)

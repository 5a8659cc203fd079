"""Where a basin ends, by the formula: interpolated crossings, ends of the grid, broken models."""

from __future__ import annotations

import pytest

from seawall.methods.landscape.extent import Extent, extent, mean_safety

GRID = (-2.0, -1.0, 0.0, 1.0, 2.0)


@pytest.mark.parametrize(
    ("rates", "found"),
    [
        ((1.0, 0.5, 0.0, 0.0, 0.3), Extent(-0.2, 1 + 1 / 3, "crossed", "crossed")),
        ((0.0, 0.0, 0.0, 0.0, 0.05), Extent(-2.0, 2.0, "grid", "grid")),
        ((0.0, 1.0, 0.05, 0.1, 0.0), Extent(-0.05 / 0.95, 1.0, "crossed", "crossed")),
        ((None, 0.0, 0.0, None, 0.0), Extent(-1.0, 0.0, "broken", "broken")),
        ((0.0, 0.0, 0.1, 0.0, 0.0), Extent(0.0, 0.0, "crossed", "crossed")),
        ((0.0, 0.0, None, 0.0, 0.0), Extent(0.0, 0.0, "broken", "broken")),
    ],
)
def test_a_basin_ends_where_its_rate_first_reaches_the_threshold(
    rates: tuple[float | None, ...], found: Extent
) -> None:
    got = extent(GRID, rates, 0.1)
    assert (got.low_end, got.high_end) == (found.low_end, found.high_end)
    assert (got.low, got.high) == pytest.approx((found.low, found.high))
    assert got.width == pytest.approx(found.high - found.low)


def test_a_grid_of_one_side_ends_at_zero_on_the_other() -> None:
    assert extent((0.0, 0.5, 1.0), (0.0, 0.0, 0.2), 0.1) == Extent(0.0, 0.75, "grid", "crossed")


def test_mean_safety_is_the_area_under_the_safe_rate() -> None:
    assert mean_safety((-1.0, 0.0, 3.0), (1.0, 0.0, 0.5)) == pytest.approx((0.5 + 3 * 0.75) / 4)
    assert mean_safety((-1.0, 0.0, 3.0), (None, 0.0, 0.5)) == pytest.approx(0.75)
    assert mean_safety((-1.0, 0.0, 1.0), (None, 0.0, None)) is None

"""Intervals over trainings: another seed counts, and goals are the same for all seeds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm, t

from seawall.evaluation.bootstrap import Floats, percentile_interval, seeds_and_goals_interval


def spread(seeds: list[float], goals: list[float]) -> tuple[float, float]:
    """The interval of a value that is the sum of what its seed and its goal contribute."""
    values_SC: Floats = np.add.outer(np.array(seeds), np.array(goals))
    return seeds_and_goals_interval(values_SC, np.ones_like(values_SC))


def test_seeds_that_differ_widen_an_interval_that_goals_alone_leave_narrow() -> None:
    same = spread([0.0, 0.0, 0.0], [0.1] * 40)
    assert same == pytest.approx((0.1, 0.1))
    low, high = spread([-0.3, 0.0, 0.3], [0.1] * 40)
    assert (low, high) == pytest.approx((-0.2, 0.4))  # three seeds: the range of the resamples


def test_goals_that_differ_widen_it_as_well() -> None:
    goals = [0.0, 1.0] * 20
    low, high = spread([0.0, 0.0, 0.0, 0.0, 0.0], goals)
    alone = seeds_and_goals_interval(np.array([goals]), np.ones((1, 40)))
    assert low < alone[0] < 0.5 < alone[1] < high


def test_one_seed_is_held_fixed() -> None:
    low, high = seeds_and_goals_interval(np.array([[0.2, 0.2, 0.2]]), np.ones((1, 3)))
    assert (low, high) == pytest.approx((0.2, 0.2))


def test_cells_without_replies_do_not_count() -> None:
    values_SC = np.array([[0.2, np.nan], [0.2, 0.2], [0.2, 0.2]])
    weights_SC = np.array([[2.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    assert seeds_and_goals_interval(values_SC, weights_SC) == pytest.approx((0.2, 0.2))


def test_percentiles_are_expanded_by_students_t() -> None:
    values_R: Floats = np.arange(100_001) / 100_000
    tail = float(norm.cdf(-np.sqrt(5 / 4) * t.ppf(0.975, 4)))
    assert percentile_interval(values_R, units=5) == pytest.approx((tail, 1 - tail), abs=1e-4)
    assert percentile_interval(values_R) == pytest.approx((0.025, 0.975), abs=1e-4)


def test_the_same_seed_gives_the_same_interval() -> None:
    values_SC: Floats = np.random.default_rng(0).normal(size=(4, 30))
    first, second = (seeds_and_goals_interval(values_SC, np.ones_like(values_SC), seed=7) for _ in range(2))
    assert first == second


def test_it_holds_the_truth_over_new_seeds_and_goals() -> None:
    generator = np.random.default_rng(1)
    covered = []
    for _ in range(120):
        seeds, goals = generator.normal(0, 0.2, 5), generator.normal(0, 0.5, 40)
        values_SC: Floats = 0.1 + np.add.outer(seeds, goals) + generator.normal(0, 0.3, (5, 40))
        low, high = seeds_and_goals_interval(values_SC, np.ones_like(values_SC), resamples=400)
        covered.append(low <= 0.1 <= high)
    assert sum(covered) / len(covered) >= 0.92

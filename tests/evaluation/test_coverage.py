"""The intervals cover the truth: `benchmarks/coverage.py` with few draws.

Its full tables are in docs/measurement.md.
"""

from __future__ import annotations

import importlib.util
import math
from types import ModuleType

import pytest

from places import REPOSITORY

WANTED = 0.945
DRAWS = 300


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coverage_benchmark", REPOSITORY / "benchmarks/coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def almost(wanted: float, draws: int) -> float:
    """What a share that is truly `wanted` falls below in one of a thousand simulations."""
    return wanted - 3.1 * math.sqrt(wanted * (1 - wanted) / draws)


@pytest.mark.parametrize("goals", [10, 20, 40, 60, 100, 200, 400])
def test_with_one_reply_a_goal_the_interval_covers_every_rate(coverage: ModuleType, goals: int) -> None:
    for rate in (0.0, 0.01, 0.05, 0.08, 0.1, 0.3, 0.5, 0.7, 0.99, 1.0):
        assert coverage.single_coverage(goals, rate) >= WANTED, rate


@pytest.mark.parametrize("goals", [10, 40, 100])
@pytest.mark.parametrize("each", [2, 6])
def test_with_several_replies_a_goal_too(coverage: ModuleType, goals: int, each: int) -> None:
    cells = [
        coverage.clustered_coverage(DRAWS, goals, each, rate=rate, correlation=correlation, seed=goals)
        for rate in (0.01, 0.05, 0.1, 0.3, 0.5)
        for correlation in (0.0, 0.3, 1.0)
    ]
    assert min(cells) >= almost(WANTED, DRAWS)
    assert sum(cells) / len(cells) >= WANTED


@pytest.mark.parametrize("goals", [10, 40, 100])
def test_the_interval_of_a_change_covers_it_and_clear_is_rarely_a_false_alarm(coverage: ModuleType, goals: int) -> None:
    cells = [(up, down, *coverage.change_coverage(1000, goals, up, down, seed=goals)) for up, down in coverage.MOVES]
    assert min(covered for _, _, covered, _ in cells) >= almost(WANTED, 1000)
    assert max(clear for up, down, _, clear in cells if up == down) <= 0.05
    found = coverage.change_coverage(1000, goals, 0.5, 0.0, seed=goals)[1]
    assert found > (0.99 if goals > 10 else 0.3)


def test_what_the_bench_calls_coverage_would_see_an_interval_that_is_too_narrow(
    coverage: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replies to one goal taken as independent: far from the wanted coverage."""

    def narrow(hits_C: object, scored_C: object) -> tuple[float, float]:
        hits, scored = float(hits_C.sum()), float(scored_C.sum())  # type: ignore[attr-defined]
        half = 1.96 * math.sqrt(hits / scored * (1 - hits / scored) / scored)
        return hits / scored - half, hits / scored + half

    monkeypatch.setattr(coverage, "rate_interval", narrow)
    assert coverage.clustered_coverage(DRAWS, 40, 6, rate=0.3, correlation=0.6, seed=1) < 0.85

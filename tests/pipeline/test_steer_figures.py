"""Shares of an effect and rank correlations, against numbers made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from seawall.artifacts.evaluation import Sample
from seawall.config import EvalConfig
from seawall.data.types import user
from seawall.pipeline.steer_figures import rank_correlation, recovered

CONFIG = EvalConfig(bootstrap=200)


def side(refused: int, count: int = 40) -> list[Sample]:
    return [
        Sample(f"p{at}", f"g{at}", "plain", user("x"), "y", "refused" if at < refused else "complied", "")
        for at in range(count)
    ]


def test_half_of_the_effect_is_a_half() -> None:
    found = recovered(side(36), side(4), side(20), "plain", CONFIG)
    assert found is not None
    assert found.value == pytest.approx(0.5)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.5 < found.high
    whole = recovered(side(36), side(4), side(4), "plain", CONFIG)
    assert whole is not None
    assert whole.value == pytest.approx(1.0)
    assert recovered(side(36), side(36), side(20), "plain", CONFIG) is None


def test_ranks_and_not_values_are_correlated() -> None:
    x = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    rising = rank_correlation(x, [float(np.exp(20 * one)) for one in x], resamples=50, seed=0)
    assert rising is not None
    assert rising.value == pytest.approx(1.0)
    falling = rank_correlation(x, [-one for one in x], resamples=50, seed=0)
    assert falling is not None
    assert falling.value == pytest.approx(-1.0)
    # Ties share their mean rank: ranks 0.5 0.5 2 3 against 0 1 2 3.
    tied = rank_correlation([1.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0], resamples=50, seed=0)
    assert tied is not None
    assert tied.value == pytest.approx(np.corrcoef([0.5, 0.5, 2, 3], [0, 1, 2, 3])[0, 1])


def test_what_does_not_vary_has_no_correlation() -> None:
    assert rank_correlation([1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0], resamples=50, seed=0) is None
    assert rank_correlation([1.0, 2.0], [1.0, 2.0], resamples=50, seed=0) is None


def test_the_interval_of_noise_holds_zero() -> None:
    rng = np.random.default_rng(0)
    found = rank_correlation(rng.normal(size=80).tolist(), rng.normal(size=80).tolist(), resamples=300, seed=0)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0 < found.high

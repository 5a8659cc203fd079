"""Sentences about a landscape whose unmoved model gave no reply that could be judged."""

from __future__ import annotations

import pytest

from seawall.artifacts.evaluation import Rate
from seawall.artifacts.landscape import HARMFUL, LandscapePoint, LandscapeResult
from seawall.methods.landscape.claim import claim


def _claim(rate: Rate) -> str:
    point = LandscapePoint("unmoved", {}, {HARMFUL: rate})
    return claim(
        LandscapeResult("sha256:0", directions=(), points=(point,), plane=None, threshold=0.25, most_unscored=0.5)
    )


@pytest.mark.parametrize("rate", [Rate(None, 0.0, 1.0, 40, 40), Rate(0.5, 0.0, 1.0, 40, 40)], ids=["null", "early"])
def test_nothing_judged_is_no_rate(rate: Rate) -> None:
    text = _claim(rate)
    assert text.startswith("No reply of the unmoved model to 40 held-out harmful requests could be judged.")
    assert "no basin around it is measured" in text
    assert "50%" not in text.split("At 1 of")[0]


def test_a_rate_is_of_requests_that_are_not_refused() -> None:
    text = _claim(Rate(0.5, 0.3, 0.7, 40, 2))
    assert "does not refuse 50% [30%, 70%, 2 of 40 not judged] of held-out harmful requests" in text
    assert "It lies in no basin" in text

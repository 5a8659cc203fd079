"""95 % intervals of rates and of paired changes, whose coverage a simulation shows (`benchmarks/coverage.py`).

Tables, claims and the gate all use these. Replies to one goal are alike, so goals are the units.

- A rate: Clopper and Pearson's interval for the effective number of replies, as Korn and Graubard (1998) use it for
  clustered surveys. The design effect is estimated from the goals and shrunk towards that of goals whose replies are
  all the same, the more the fewer goals speak for an estimate.
- A paired change: the share of goals that moved up less the share that moved down, each with Clopper and Pearson's
  interval, put together by Zou and Donner's method (2008) with the correlation of two shares of one whole.

Legend: C goals.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, t

Floats = NDArray[np.float64]

LEVEL = 0.95
_TAIL = (1 + LEVEL) / 2
_SHRINKAGE = 4.0
"""Goals that the fully clustered design effect counts as. With 4 the coverage of rates is at least .945 for 10 to 400
goals of 1 to 6 replies, whatever the rate and the likeness of replies to one goal."""


def exact_interval(hits: float, trials: float) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a share; hits and trials may be fractions of effective numbers."""
    assert 0 <= hits <= trials
    low = float(beta.ppf(1 - _TAIL, hits, trials - hits + 1)) if hits > 0 else 0.0
    high = float(beta.ppf(_TAIL, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high


def rate_interval(hits_C: Floats, scored_C: Floats) -> tuple[float, float]:
    """95 % interval of the share of scored replies that hit, clustered by goal.

    Args:
        hits_C: replies of each goal that hit.
        scored_C: replies of each goal that count; at least one of some goal.
    """
    scored = scored_C > 0
    hits_C, scored_C = hits_C[scored], scored_C[scored]
    goals, replies = len(scored_C), float(scored_C.sum())
    share = float(hits_C.sum()) / replies
    per_goal = float((scored_C**2).sum()) / replies
    effect = _design_effect(hits_C, scored_C, share, per_goal) if per_goal > 1 and goals > 1 else per_goal
    trials = replies / effect
    if per_goal > 1 and goals > 1:
        trials *= float(t.ppf(_TAIL, replies - 1) / t.ppf(_TAIL, goals - 1)) ** 2
    low, high = exact_interval(share * trials, trials)
    return min(low, share), max(high, share)


def _design_effect(hits_C: Floats, scored_C: Floats, share: float, per_goal: float) -> float:
    """By how much goals make the variance of a rate larger than that of independent replies: 1 to `per_goal`."""
    goals, replies = len(scored_C), float(scored_C.sum())
    independent = share * (1 - share) / replies
    if independent <= 0:
        return per_goal
    residuals_C = hits_C - share * scored_C
    variance = float((residuals_C**2).sum()) * goals / (goals - 1) / replies**2
    informative = min(int((hits_C > 0).sum()), int((hits_C < scored_C).sum()))
    effect = (informative * variance / independent + _SHRINKAGE * per_goal) / (informative + _SHRINKAGE)
    return min(max(effect, 1.0), per_goal)


def change_interval(moves_C: Floats, weights_C: Floats) -> tuple[float, float]:
    """95 % interval of a weighted mean of paired changes.

    Args:
        moves_C: after minus before of each goal, in [-1, 1].
        weights_C: how much each goal counts, above 0: the number of its replies.
    """
    assert len(moves_C) == len(weights_C) > 0
    shares_C = weights_C / weights_C.sum()
    trials = 1 / float((shares_C**2).sum())
    up, down = (float(shares_C @ np.maximum(side_C, 0.0)) for side_C in (moves_C, -moves_C))
    up, down = min(up, 1.0), min(down, 1.0)
    (low_up, high_up), (low_down, high_down) = (exact_interval(share * trials, trials) for share in (up, down))
    # Two shares of one whole are negatively correlated, which makes their difference vary more.
    inner = (1 - up) * (1 - down)
    correlation = -math.sqrt(up * down / inner) if inner > 0 else 0.0
    below = _distance(up - low_up, high_down - down, correlation)
    above = _distance(high_up - up, down - low_down, correlation)
    return max(-1.0, up - down - below), min(1.0, up - down + above)


def contrast_interval(first: tuple[float, float, float], second: tuple[float, float, float]) -> tuple[float, float]:
    """95 % interval of the difference of two independent quantities, each with an interval: (estimate, low, high).

    Newcombe's method (1998, method 10), in the general form of Zou and Donner (2008), without correlation.
    """
    (a, low_a, high_a), (b, low_b, high_b) = first, second
    return a - b - _distance(a - low_a, high_b - b, 0.0), a - b + _distance(high_a - a, b - low_b, 0.0)


def _distance(first: float, second: float, correlation: float) -> float:
    """Zou and Donner's distance of a difference from its limit, by those of its two terms."""
    return math.sqrt(max(0.0, first**2 + second**2 - 2 * correlation * first * second))

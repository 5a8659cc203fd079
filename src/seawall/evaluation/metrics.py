"""Rates and differences with intervals clustered by goal, because replies to one goal are not independent.

Legend: C goals (clusters), R resamples.

The intervals of rates and differences are those of `intervals.py`; those of ratios (`lost_share`, `relative_increase`)
are percentiles of the cluster bootstrap. Replies that could not be judged are left out of a rate and counted apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seawall.artifacts.evaluation import Difference, Rate
from seawall.artifacts.groups import CountedVerdict
from seawall.data.types import Outcome
from seawall.evaluation.bootstrap import (
    Floats,
    count_replies,
    percentile_interval,
    resample_weights,
    resampled_rates,
    sign_flip_p_value,
)
from seawall.evaluation.intervals import change_interval, rate_interval

_MIN_NATS = 1e-9
"""Lower bound of a loss used as a denominator."""


@dataclass(frozen=True, slots=True)
class Increase:
    """After over before, minus one, with a 95 % interval, and the number of questions."""

    increase: float
    low: float
    high: float
    n: int


def rate_with_interval(outcomes: Sequence[Outcome], clusters: Sequence[str], target: CountedVerdict) -> Rate:
    """The share of `target` among the replies whose outcome is known, with a 95 % interval clustered by goal.

    Args:
        outcomes: one per reply.
        clusters: the goal of each reply, in any order.
        target: the outcome to count.

    Returns:
        The rate; `n` counts all replies. Where no outcome is known, the rate is None in [0, 1], which passes no
        threshold in either direction.
    """
    (counts,) = count_replies([outcomes], clusters, target)
    n, unscored, evades = len(outcomes), outcomes.count("unscored"), outcomes.count("evades")
    low, high = rate_interval(counts.hits_C, counts.scored_C) if unscored < n else (0.0, 1.0)
    return Rate(counts.rate(), low, high, n=n, unscored=unscored, evades=evades)


def paired_difference(
    before: Sequence[Outcome],
    after: Sequence[Outcome],
    clusters: Sequence[str],
    *,
    target: CountedVerdict,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """The change of a rate on the prompts whose outcome is known before and after.

    A reply that becomes impossible to judge is no evidence of a change. The p-value is that of a sign-flip test:
    without a change, before and after are exchangeable within each goal.

    Args:
        before, after: outcomes on the same prompts, in the same order.
        clusters: the goal of each prompt.
        target: the outcome to count.
        resamples: number of resamples, for the p-value.
        seed: seed of the resamples.

    Returns:
        The difference; 0 with the interval [-1, 1] and p = 1 where no prompt has a known outcome on both sides.
    """
    assert len(before) == len(after)
    both = [("unscored" in pair) for pair in zip(before, after, strict=True)]
    sides: list[list[Outcome]] = [
        ["unscored" if unknown else label for unknown, label in zip(both, side, strict=True)]
        for side in (before, after)
    ]
    first, second = count_replies(sides, clusters, target)
    became = sum(was != "unscored" and now == "unscored" for was, now in zip(before, after, strict=True))
    return _paired(first.hits_C, second.hits_C, first.scored_C, resamples=resamples, seed=seed, became=became)


def paired_score_difference(
    before: Sequence[float], after: Sequence[float], *, resamples: int = 2000, seed: int = 0
) -> Difference:
    """The change of a mean of scores in [0, 1] on the same questions, in the same order.

    Computed like `paired_difference`, with every question as its own cluster.
    """
    assert len(before) == len(after) > 0
    first, second = (np.asarray(side, dtype=np.float64) for side in (before, after))
    return _paired(first, second, np.ones(len(before)), resamples=resamples, seed=seed)


def _paired(
    first_C: Floats, second_C: Floats, replies_C: Floats, *, resamples: int, seed: int, became: int = 0
) -> Difference:
    counted = replies_C > 0
    goals = int(counted.sum())
    if not goals:
        return Difference(0.0, -1.0, 1.0, 1.0, 0, became)
    moves_C, weights_C = (second_C - first_C)[counted], replies_C[counted]
    difference = float(moves_C.sum() / weights_C.sum())
    low, high = change_interval(moves_C / weights_C, weights_C)
    p = sign_flip_p_value(moves_C, resamples=resamples, seed=seed)
    return Difference(difference, min(low, difference), max(high, difference), p, goals, became)


def lost_share(
    sides: tuple[Sequence[Outcome], Sequence[Outcome], Sequence[Outcome]],
    clusters: Sequence[str],
    *,
    target: CountedVerdict,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float] | None:
    """The share of a rate's gain from a first model to a second that a third model loses, with a 95 % interval.

    0: nothing is lost; 1: all is lost; below 0: the third model is better than the second. The share is not clipped,
    and is that on prompts whose outcome is known for all three models.
    Goals are resampled with their replies of all three models; where that has no width, the interval is that of the
    difference of second and third model over the gain.

    Args:
        sides: verdicts of the three models, on the same prompts.
        clusters: the goal of each prompt.
        target: the verdict to count.
        resamples: number of resamples of the goals, for the interval.
        seed: seed of the resamples.

    Returns:
        (share, low, high); None where there is no gain, overall or in some resample.
    """
    judged = ["unscored" not in row for row in zip(*sides, strict=True)]
    if not any(judged):
        return None
    sides_judged: list[list[Outcome]] = [
        [label for label, is_judged in zip(side, judged, strict=True) if is_judged] for side in sides
    ]
    goals = [goal for goal, is_judged in zip(clusters, judged, strict=True) if is_judged]
    counts = count_replies(sides_judged, goals, target)
    unweighted_1C = np.ones((1, counts[0].hits_C.size))
    weights_RC = [unweighted_1C, *resample_weights(counts[0].hits_C.size, resamples, seed)]
    first_R, second_R, third_R = (resampled_rates(side, weights_RC) for side in counts)
    gain_R = second_R - first_R
    if np.isnan(gain_R).any() or np.isnan(third_R).any() or (np.sign(gain_R) != np.sign(gain_R[0])).any():
        return None
    if gain_R[0] == 0:
        return None
    share_R = (second_R - third_R) / gain_R
    low, high = percentile_interval(share_R[1:])
    share = float(share_R[0])
    if high - low <= 0:
        loss = paired_difference(sides_judged[1], sides_judged[2], goals, target=target, resamples=resamples, seed=seed)
        low, high = sorted(-end / float(gain_R[0]) for end in (loss.low, loss.high))
    return share, min(low, share), max(high, share)


def relative_increase(
    before: Sequence[float], after: Sequence[float], *, resamples: int = 2000, seed: int = 0
) -> Increase:
    """The relative increase of a total loss: sum of `after` over sum of `before`, minus one.

    The interval resamples questions, each with its loss before and after. A loss that is not finite makes all numbers
    NaN, which passes no threshold.

    Args:
        before: one loss per question, in nats summed over the answer, so that every token weighs the same.
        after: the losses of the same questions, in the same order.
        resamples: number of resamples of the questions, for the interval.
        seed: seed of the resamples.
    """
    assert len(before) == len(after) > 0
    first_C, second_C = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if not (np.isfinite(first_C).all() and np.isfinite(second_C).all()):
        return Increase(np.nan, np.nan, np.nan, len(before))
    unweighted_1C = np.ones((1, first_C.size))
    increases_R = np.concatenate(
        [
            chunk_RC @ (second_C - first_C) / np.maximum(chunk_RC @ first_C, _MIN_NATS)
            for chunk_RC in (unweighted_1C, *resample_weights(first_C.size, resamples, seed))
        ]
    )
    increase, (low, high) = float(increases_R[0]), percentile_interval(increases_R[1:])
    return Increase(increase, min(low, increase), max(high, increase), len(before))

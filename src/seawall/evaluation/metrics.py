"""Rates and differences with intervals clustered by goal, because replies to one goal are not independent.

Legend: C goals (clusters), R resamples.

The interval is the percentile interval of the cluster bootstrap. Where that has no width (no reply or every reply hits,
or all goals agree), it is Wilson's interval with the number of goals as trials, so that "0 of 40" never claims
certainty. Unscored replies are left out of a rate's denominator and reported separately.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seawall.artifacts.evaluation import Rate
from seawall.artifacts.groups import CountedVerdict
from seawall.data.types import VerdictLabel
from seawall.evaluation.bootstrap import (
    Counts,
    count_replies,
    percentile_interval,
    resample_weights,
    resampled_rates,
    sign_flip_p_value,
)

_Z = 1.959963984540054
"""Quantile of the standard normal distribution for a 95 % interval."""
_MIN_NATS = 1e-9
"""Lower bound of a loss used as a denominator."""


@dataclass(frozen=True, slots=True)
class Difference:
    """After minus before, with a 95 % interval, the p-value of "no difference", and the number of goals."""

    difference: float
    low: float
    high: float
    p: float
    goals: int


@dataclass(frozen=True, slots=True)
class Increase:
    """After over before, minus one, with a 95 % interval, and the number of questions."""

    increase: float
    low: float
    high: float
    n: int


def rate_with_interval(
    labels: Sequence[VerdictLabel],
    clusters: Sequence[str],
    target: CountedVerdict,
    *,
    resamples: int = 2000,
    seed: int = 0,
    cautious: bool = False,
) -> Rate:
    """The share of `target` among the scored replies, with a 95 % interval clustered by goal.

    Args:
        labels: one verdict per reply.
        clusters: the goal of each reply, in any order.
        target: the verdict to count.
        resamples: number of resamples of the goals, for the interval.
        seed: seed of the resamples; equal seeds give equal intervals.
        cautious: make the interval at least as wide as Wilson's, for comparison with a limit. Otherwise one hit in 40
            goals can have a narrower interval than no hit.

    Returns:
        The rate over the scored replies; `n` counts all replies, `unscored` the unscored ones. With no scored reply the
        rate is 0.5 in [0, 1], which passes no threshold in either direction and, unlike NaN, is valid JSON.
    """
    (counts,) = count_replies([labels], clusters, target)
    unscored = len(labels) - int(counts.scored_C.sum())
    rate = counts.rate()
    if rate is None:
        return Rate(rate=0.5, low=0.0, high=1.0, n=len(labels), unscored=unscored)
    rates_R = resampled_rates(counts, resample_weights(counts.hits_C.size, resamples, seed))
    low, high = percentile_interval(rates_R)
    if cautious or high - low <= 0:
        score = wilson(rate, int((counts.scored_C > 0).sum()))
        low, high = min(low, score[0]), max(high, score[1])
    return Rate(rate=rate, low=min(low, rate), high=max(high, rate), n=len(labels), unscored=unscored)


def paired_difference(
    before: Sequence[VerdictLabel],
    after: Sequence[VerdictLabel],
    clusters: Sequence[str],
    *,
    target: CountedVerdict,
    resamples: int = 2000,
    seed: int = 0,
    cautious: bool = False,
) -> Difference:
    """The change of a rate on the same prompts: the difference of the two reported rates.

    The interval resamples goals, each with its replies before and after. The p-value is that of a sign-flip test:
    without a change, before and after are exchangeable within each goal. Where all goals change by the same amount, the
    bootstrap has no width; the interval is then Newcombe's, from the Wilson intervals of the two rates, or, where no
    goal changes, from those of the shares of goals that rise and fall. A `cautious` interval is at least as wide as the
    latter.

    Returns:
        The difference; 0 with the interval [-1, 1] and p = 1 where a side has no scored reply.
    """
    assert len(before) == len(after)
    first, second = count_replies([before, after], clusters, target)
    return _paired(first, second, resamples=resamples, seed=seed, cautious=cautious)


def paired_score_difference(
    before: Sequence[float],
    after: Sequence[float],
    *,
    resamples: int = 2000,
    seed: int = 0,
    cautious: bool = False,
) -> Difference:
    """The change of a mean of scores in [0, 1] on the same questions, in the same order.

    Computed like `paired_difference`, with every question as its own cluster.
    """
    assert len(before) == len(after) > 0
    scored_C = np.ones(len(before))
    first, second = (Counts(np.asarray(side, dtype=np.float64), scored_C) for side in (before, after))
    return _paired(first, second, resamples=resamples, seed=seed, cautious=cautious)


def _paired(first: Counts, second: Counts, *, resamples: int, seed: int, cautious: bool) -> Difference:
    rate_before, rate_after = first.rate(), second.rate()
    goals = int(((first.scored_C > 0) & (second.scored_C > 0)).sum())
    if rate_before is None or rate_after is None:
        return Difference(0.0, -1.0, 1.0, 1.0, goals)
    difference = rate_after - rate_before
    weights_RC = list(resample_weights(first.hits_C.size, resamples, seed))
    low, high = percentile_interval(resampled_rates(second, weights_RC) - resampled_rates(first, weights_RC))
    if high - low <= 0:
        unchanged = np.array_equal(first.hits_C, second.hits_C) and np.array_equal(first.scored_C, second.scored_C)
        low, high = _share_interval(first, second) if unchanged else _newcombe(rate_before, rate_after, max(goals, 1))
    if cautious:
        shares = _share_interval(first, second)
        low, high = min(low, shares[0]), max(high, shares[1])
    p = sign_flip_p_value(first, second, resamples=resamples, seed=seed)
    return Difference(difference, min(low, difference), max(high, difference), p, goals)


def lost_share(
    sides: tuple[Sequence[VerdictLabel], Sequence[VerdictLabel], Sequence[VerdictLabel]],
    clusters: Sequence[str],
    *,
    target: CountedVerdict,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float] | None:
    """The share of a rate's gain from a first model to a second that a third model loses, with a 95 % interval.

    0: nothing is lost; 1: all is lost; below 0: the third model is better than the second. The share is not clipped.
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
    counts = count_replies(sides, clusters, target)
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
        loss = paired_difference(sides[1], sides[2], clusters, target=target, resamples=resamples, seed=seed)
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


def wilson(rate: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share of `trials` trials (Wilson 1927)."""
    assert trials > 0
    spread = _Z**2 / trials
    middle = (rate + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * np.sqrt(rate * (1 - rate) / trials + spread / (4 * trials))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def _share_interval(first: Counts, second: Counts) -> tuple[float, float]:
    """Interval of a difference, as the share of goals that rise minus the share that fall.

    Newcombe's method on the Wilson intervals of these two shares. On those of the two rates, it would treat before and
    after as independent, and give "no change" the combined width of both.
    """
    scored_C = (first.scored_C > 0) & (second.scored_C > 0)
    changes = second.hits_C[scored_C] / second.scored_C[scored_C] - first.hits_C[scored_C] / first.scored_C[scored_C]
    trials = max(changes.size, 1)
    rise, fall = (float(np.maximum(side, 0).sum()) / trials for side in (changes, -changes))
    return _newcombe(fall, rise, trials)


def _newcombe(before: float, after: float, trials: int) -> tuple[float, float]:
    """Interval of a difference from two Wilson intervals (Newcombe 1998, method 10)."""
    low_before, high_before = wilson(before, trials)
    low_after, high_after = wilson(after, trials)
    difference = after - before
    down = np.hypot(after - low_after, high_before - before)
    up = np.hypot(high_after - after, before - low_before)
    return max(-1.0, float(difference - down)), min(1.0, float(difference + up))

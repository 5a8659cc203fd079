"""Rates with intervals that know about goals: replies to one goal are alike, so goals are resampled, not replies.

Legend: C goals (clusters), R resamples.

The interval is the percentile interval of the cluster bootstrap. Where that has no width (no or every reply hits, or
all goals agree) it is Wilson's interval for as many trials as there are goals, so that "0 of 40" never claims
certainty. Unscored replies count neither way: they leave the rate's denominator and are reported beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seawall.artifacts.evaluation import Rate
from seawall.artifacts.groups import CountedVerdict
from seawall.data.types import VerdictLabel

Floats = NDArray[np.float64]

LEVEL = 0.95
_Z = 1.959963984540054
_CHUNK = 2048
_CELLS = 2**22
_LEAST = 1e-9
"""Nats that stand for a loss of zero below a fraction bar."""


@dataclass(frozen=True, slots=True)
class Difference:
    """After minus before, with its 95 % interval, the p-value of "no difference", and the number of goals."""

    difference: float
    low: float
    high: float
    p: float
    goals: int


@dataclass(frozen=True, slots=True)
class Increase:
    """After over before, minus one, with its 95 % interval, and the number of questions."""

    increase: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class _Counts:
    """Replies per goal: those that hit the target, and those that were scored at all."""

    hits_C: Floats
    scored_C: Floats

    def rate(self) -> float | None:
        """Hits among scored; None where nothing was scored."""
        scored = float(self.scored_C.sum())
        return float(self.hits_C.sum()) / scored if scored else None


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
        clusters: the goal of each reply. Their order does not matter to the result.
        target: the verdict to count.
        resamples: of the goals, for the interval.
        seed: of the resamples; the same seed gives the same interval.
        cautious: an interval at least as wide as Wilson's. Resamples of goals of which one in forty hits spread less
            than "none of 40" leaves open: who holds a model to a limit must not favour the one hit.

    Returns:
        A rate over the scored replies; `n` counts all replies, `unscored` those that were not. With none scored nothing
        is known: 0.5 in [0, 1], which passes no threshold in either direction and, unlike NaN, can be written as JSON.
    """
    (counts,) = _counted([labels], clusters, target)
    unscored = len(labels) - int(counts.scored_C.sum())
    rate = counts.rate()
    if rate is None:
        return Rate(rate=0.5, low=0.0, high=1.0, n=len(labels), unscored=unscored)
    rates_R = _ratios(counts, _weights(counts.hits_C.size, resamples, seed))
    low, high = _percentiles(rates_R)
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
    """How a rate moved on the same replies' prompts: the difference of the two rates as reported.

    The interval resamples goals, each with its replies before and after. The p-value is that of a sign-flip test: if
    nothing changed, before and after are exchangeable within each goal. Where every goal moved alike the bootstrap has
    no width; the interval then comes from Newcombe's method on the Wilson intervals of the two rates, or, where no goal
    moved at all, on those of the shares of goals that moved up and down. A `cautious` interval is at least as wide as
    the latter.

    Returns:
        The difference; with nothing scored on a side, 0 with the interval [-1, 1] and p = 1.
    """
    assert len(before) == len(after)
    first, second = _counted([before, after], clusters, target)
    return _paired(first, second, resamples=resamples, seed=seed, cautious=cautious)


def paired_score_difference(
    before: Sequence[float],
    after: Sequence[float],
    *,
    resamples: int = 2000,
    seed: int = 0,
    cautious: bool = False,
) -> Difference:
    """How a mean of scores in [0, 1] moved on the same questions in the same order: as `paired_difference`, where every
    question is a cluster of its own.
    """
    assert len(before) == len(after) > 0
    asked_C = np.ones(len(before))
    first, second = (_Counts(np.asarray(side, dtype=np.float64), asked_C) for side in (before, after))
    return _paired(first, second, resamples=resamples, seed=seed, cautious=cautious)


def _paired(first: _Counts, second: _Counts, *, resamples: int, seed: int, cautious: bool) -> Difference:
    rate_before, rate_after = first.rate(), second.rate()
    goals = int(((first.scored_C > 0) & (second.scored_C > 0)).sum())
    if rate_before is None or rate_after is None:
        return Difference(0.0, -1.0, 1.0, 1.0, goals)
    difference = rate_after - rate_before
    weights_RC = list(_weights(first.hits_C.size, resamples, seed))
    low, high = _percentiles(_ratios(second, weights_RC) - _ratios(first, weights_RC))
    if high - low <= 0:
        still = np.array_equal(first.hits_C, second.hits_C) and np.array_equal(first.scored_C, second.scored_C)
        low, high = _of_moves(first, second) if still else _newcombe(rate_before, rate_after, max(goals, 1))
    if cautious:
        moves = _of_moves(first, second)
        low, high = min(low, moves[0]), max(high, moves[1])
    p = _sign_flip(first, second, resamples=resamples, seed=seed)
    return Difference(difference, min(low, difference), max(high, difference), p, goals)


def lost_share(
    sides: tuple[Sequence[VerdictLabel], Sequence[VerdictLabel], Sequence[VerdictLabel]],
    clusters: Sequence[str],
    *,
    target: CountedVerdict,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float] | None:
    """Of what a rate gained from a first model to a second, the share that is lost in a third, with its 95 % interval.

    0 is all kept, 1 all lost; below 0 the third is better than the second. Goals are resampled with their replies of
    all three; where that has no width, the interval is that of the difference of second and third over the gain. The
    numbers are not cut to [0, 1].

    Args:
        sides: verdicts of the three, on the same prompts.
        clusters: the goal of each prompt.
        target: the verdict to count.
        resamples: of the goals, for the interval.
        seed: of the resamples.

    Returns:
        (share, low, high), or None where nothing was gained or a resample gained nothing: there is no share of it.
    """
    counts = _counted(sides, clusters, target)
    whole = np.ones((1, counts[0].hits_C.size))
    weights_RC = [whole, *_weights(counts[0].hits_C.size, resamples, seed)]
    first_R, second_R, third_R = (_ratios(side, weights_RC) for side in counts)
    gained_R = second_R - first_R
    if np.isnan(gained_R).any() or np.isnan(third_R).any() or (np.sign(gained_R) != np.sign(gained_R[0])).any():
        return None
    if gained_R[0] == 0:
        return None
    share_R = (second_R - third_R) / gained_R
    low, high = _percentiles(share_R[1:])
    share = float(share_R[0])
    if high - low <= 0:
        lost = paired_difference(sides[1], sides[2], clusters, target=target, resamples=resamples, seed=seed)
        low, high = sorted(-end / float(gained_R[0]) for end in (lost.low, lost.high))
    return share, min(low, share), max(high, share)


def relative_increase(
    before: Sequence[float], after: Sequence[float], *, resamples: int = 2000, seed: int = 0
) -> Increase:
    """By what share a total grew: sum of `after` over sum of `before`, minus one. Of losses: what capability cost.

    The interval resamples questions, each with its loss before and after. A loss that is not a number makes all three
    NaN, which passes no threshold.

    Args:
        before: one loss per question, in nats over the whole answer, so that every token weighs the same.
        after: of the same questions in the same order.
        resamples: of the questions, for the interval.
        seed: of the resamples.
    """
    assert len(before) == len(after) > 0
    first_C, second_C = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if not (np.isfinite(first_C).all() and np.isfinite(second_C).all()):
        return Increase(np.nan, np.nan, np.nan, len(before))
    whole = np.ones((1, first_C.size))
    increases_R = np.concatenate(
        [
            chunk_RC @ (second_C - first_C) / np.maximum(chunk_RC @ first_C, _LEAST)
            for chunk_RC in (whole, *_weights(first_C.size, resamples, seed))
        ]
    )
    increase, (low, high) = float(increases_R[0]), _percentiles(increases_R[1:])
    return Increase(increase, min(low, increase), max(high, increase), len(before))


def wilson(rate: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % score interval for a share of so many trials. Wilson 1927."""
    assert trials > 0
    spread = _Z**2 / trials
    middle = (rate + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * np.sqrt(rate * (1 - rate) / trials + spread / (4 * trials))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def _of_moves(first: _Counts, second: _Counts) -> tuple[float, float]:
    """Interval of a difference as the share of goals that moved up less that of those that moved down.

    Newcombe's method on Wilson's intervals of these two shares. On those of the two rates it would take before and
    after for independent, and doubt even "nothing changed" by the width of both.
    """
    known = (first.scored_C > 0) & (second.scored_C > 0)
    moves = second.hits_C[known] / second.scored_C[known] - first.hits_C[known] / first.scored_C[known]
    trials = max(moves.size, 1)
    up, down = (float(np.maximum(side, 0).sum()) / trials for side in (moves, -moves))
    return _newcombe(down, up, trials)


def _newcombe(before: float, after: float, trials: int) -> tuple[float, float]:
    """Interval of a difference from two Wilson intervals. Newcombe 1998, method 10."""
    low_before, high_before = wilson(before, trials)
    low_after, high_after = wilson(after, trials)
    difference = after - before
    down = np.hypot(after - low_after, high_before - before)
    up = np.hypot(high_after - after, before - low_before)
    return max(-1.0, float(difference - down)), min(1.0, float(difference + up))


def _counted(sides: Sequence[Sequence[VerdictLabel]], clusters: Sequence[str], target: CountedVerdict) -> list[_Counts]:
    """Counts per goal for every side, goals in alphabetical order so that the order of replies does not matter."""
    assert clusters
    assert all(len(labels) == len(clusters) for labels in sides)
    names, which = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    counted = []
    for labels in sides:
        hits = np.array([label == target for label in labels], dtype=np.float64)
        scored = np.array([label != "unscored" for label in labels], dtype=np.float64)
        counted.append(
            _Counts(
                np.bincount(which, weights=hits, minlength=names.size).astype(np.float64),
                np.bincount(which, weights=scored, minlength=names.size).astype(np.float64),
            )
        )
    return counted


def _weights(goals: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each goal is drawn in each resample, in chunks (R', C) that bound the memory."""
    generator = np.random.default_rng(seed)
    for size in _chunks(resamples, goals):
        drawn_RC = generator.integers(0, goals, size=(size, goals)) + goals * np.arange(size)[:, None]
        yield np.bincount(drawn_RC.ravel(), minlength=size * goals).reshape(size, goals).astype(np.float64)


def _chunks(resamples: int, goals: int) -> Iterator[int]:
    """Sizes of chunks that bound the memory."""
    chunk = max(1, min(_CHUNK, _CELLS // goals))
    for start in range(0, resamples, chunk):
        yield min(chunk, resamples - start)


def _ratios(counts: _Counts, weights_RC: Iterable[Floats]) -> Floats:
    """The rate in every resample; NaN where it drew no scored reply."""
    parts = []
    for chunk_RC in weights_RC:
        scored_R = chunk_RC @ counts.scored_C
        hits_R = chunk_RC @ counts.hits_C
        parts.append(np.divide(hits_R, scored_R, out=np.full_like(hits_R, np.nan), where=scored_R > 0))
    return np.concatenate(parts)


def _percentiles(values_R: Floats) -> tuple[float, float]:
    kept = values_R[~np.isnan(values_R)]
    if kept.size == 0:
        return 0.0, 0.0
    low, high = np.quantile(kept, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _sign_flip(first: _Counts, second: _Counts, *, resamples: int, seed: int) -> float:
    """Two-sided p-value: how often exchanging before and after in random goals gives a difference as large."""
    observed = abs((second.rate() or 0.0) - (first.rate() or 0.0))
    # A stream of its own, so that the p-value does not depend on how many numbers the interval drew.
    generator = np.random.default_rng([seed, 1])
    as_large = 0
    for size in _chunks(resamples, first.hits_C.size):
        swap_RC = generator.integers(0, 2, size=(size, first.hits_C.size)).astype(np.float64)
        as_large += int((np.abs(_exchanged(first, second, swap_RC)) >= observed - 1e-12).sum())
    return (as_large + 1) / (resamples + 1)


def _exchanged(first: _Counts, second: _Counts, swap_RC: Floats) -> Floats:
    """The difference of rates (R) with before and after exchanged in the goals marked 1; 0 where nothing is scored."""
    hits_R = second.hits_C.sum() + swap_RC @ (first.hits_C - second.hits_C)
    scored_R = second.scored_C.sum() + swap_RC @ (first.scored_C - second.scored_C)
    other_hits_R = first.hits_C.sum() + second.hits_C.sum() - hits_R
    other_scored_R = first.scored_C.sum() + second.scored_C.sum() - scored_R
    known_R = (scored_R > 0) & (other_scored_R > 0)
    after_R = np.divide(hits_R, scored_R, out=np.zeros_like(hits_R), where=known_R)
    before_R = np.divide(other_hits_R, other_scored_R, out=np.zeros_like(hits_R), where=known_R)
    differences_R: Floats = after_R - before_R
    return differences_R

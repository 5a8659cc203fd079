"""The cluster bootstrap, for ratios: goals are resampled with all their replies; and the sign-flip test.

Over trainings, seeds are resampled too (`seeds_and_goals_interval`): another seed is another model.

Legend: C goals (clusters), R resamples, S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from seawall.artifacts.groups import CountedVerdict
from seawall.data.types import Outcome

Floats = NDArray[np.float64]

LEVEL = 0.95
_MAX_CHUNK = 2048
_MAX_CELLS = 2**22
"""Resamples times goals per chunk, at most: the bound on memory."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Number of replies per goal: those with the target outcome, and all whose outcome is known."""

    hits_C: Floats
    scored_C: Floats

    def rate(self) -> float | None:
        """Hits over scored replies; None where no reply is scored."""
        scored = float(self.scored_C.sum())
        return float(self.hits_C.sum()) / scored if scored else None


def count_replies(sides: Sequence[Sequence[Outcome]], clusters: Sequence[str], target: CountedVerdict) -> list[Counts]:
    """Counts per goal for every side; goals are sorted, so that the order of replies does not matter.

    Args:
        sides: outcomes of one or several models, each with one per reply.
        clusters: the goal of each reply.
        target: the outcome to count. Replies that evade count as scored ones that miss it.
    """
    assert clusters
    assert all(len(labels) == len(clusters) for labels in sides)
    names, goal_indices = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    counted = []
    for labels in sides:
        hits = np.array([label == target for label in labels], dtype=np.float64)
        scored = np.array([label != "unscored" for label in labels], dtype=np.float64)
        counted.append(
            Counts(
                np.bincount(goal_indices, weights=hits, minlength=names.size).astype(np.float64),
                np.bincount(goal_indices, weights=scored, minlength=names.size).astype(np.float64),
            )
        )
    return counted


def resample_weights(goals: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each resample draws each goal, in chunks of resamples (R', C)."""
    generator = np.random.default_rng(seed)
    for size in _chunks(resamples, goals):
        drawn_RC = generator.integers(0, goals, size=(size, goals)) + goals * np.arange(size)[:, None]
        yield np.bincount(drawn_RC.ravel(), minlength=size * goals).reshape(size, goals).astype(np.float64)


def _chunks(resamples: int, goals: int) -> Iterator[int]:
    """Sizes of the chunks of resamples."""
    chunk = max(1, min(_MAX_CHUNK, _MAX_CELLS // goals))
    for start in range(0, resamples, chunk):
        yield min(chunk, resamples - start)


def resampled_rates(counts: Counts, weights_RC: Iterable[Floats]) -> Floats:
    """The rate in every resample; NaN where the resample has no scored reply."""
    parts = []
    for chunk_RC in weights_RC:
        scored_R = chunk_RC @ counts.scored_C
        hits_R = chunk_RC @ counts.hits_C
        parts.append(np.divide(hits_R, scored_R, out=np.full_like(hits_R, np.nan), where=scored_R > 0))
    return np.concatenate(parts)


def percentile_interval(values_R: Floats, *, units: int | None = None) -> tuple[float, float]:
    """The central 95 % of the values, NaN left out; (0, 0) where all are NaN.

    Args:
        values_R: a statistic in every resample.
        units: number of resampled units, if they are so few that the percentiles need Student's expansion.
    """
    defined = values_R[~np.isnan(values_R)]
    if defined.size == 0:
        return 0.0, 0.0
    tail = (1 - LEVEL) / 2
    if units is not None:
        tail = float(norm.cdf(-math.sqrt(units / (units - 1)) * t.ppf(1 - tail, units - 1)))
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def seeds_and_goals_interval(
    values_SC: Floats, weights_SC: Floats, *, resamples: int = 4000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a weighted mean over trainings and goals, with seeds and goals resampled.

    Every seed is asked the same goals, so both are drawn with replacement, independently, and a cell counts the product
    of its two draws (Owen's pigeonhole bootstrap, arXiv 0712.1111). The percentiles are expanded for few seeds
    (Hesterberg, arXiv 1411.5279, section 4.3): with three seeds the interval is the range of the resamples. With one
    seed, goals alone are resampled, and the training is held fixed.

    Args:
        values_SC: such as the difference of two methods' rates on a goal, after trainings with the same seed.
        weights_SC: replies behind each value; 0 where there is none.
        resamples: number of resamples.
        seed: of the resamples.
    """
    seeds, goals = values_SC.shape
    assert weights_SC.shape == values_SC.shape
    weighted_SC = np.where(weights_SC > 0, values_SC, 0.0) * weights_SC
    means = []
    seed_weights = np.concatenate([*resample_weights(seeds, resamples, seed)]) if seeds > 1 else np.ones((resamples, 1))
    for goal_weights_RC in resample_weights(goals, resamples, seed + 1):
        drawn_RS = seed_weights[: len(goal_weights_RC)]
        seed_weights = seed_weights[len(goal_weights_RC) :]
        total_R = np.einsum("rs,sc,rc->r", drawn_RS, weights_SC, goal_weights_RC)
        sum_R = np.einsum("rs,sc,rc->r", drawn_RS, weighted_SC, goal_weights_RC)
        means.append(np.divide(sum_R, total_R, out=np.full_like(sum_R, np.nan), where=total_R > 0))
    return percentile_interval(np.concatenate(means), units=seeds if seeds > 1 else None)


def sign_flip_p_value(moves_C: Floats, *, resamples: int, seed: int) -> float:
    """Two-sided p-value of "no change": without one, the move of a goal is as likely in the other direction.

    Args:
        moves_C: how far each goal moved, weighted by its replies.
        resamples: number of random choices of directions.
        seed: of these choices.
    """
    observed = abs(float(moves_C.sum()))
    generator = np.random.default_rng([seed, 1])
    at_least_as_large = 0
    for size in _chunks(resamples, moves_C.size):
        signs_RC = generator.integers(0, 2, size=(size, moves_C.size)) * 2.0 - 1.0
        at_least_as_large += int((np.abs(signs_RC @ moves_C) >= observed - 1e-9).sum())
    return (at_least_as_large + 1) / (resamples + 1)

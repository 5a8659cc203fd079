"""The cluster bootstrap, for ratios: goals are resampled with all their replies; and the sign-flip test.

Legend: C goals (clusters), R resamples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


def percentile_interval(values_R: Floats) -> tuple[float, float]:
    """The central 95 % of the values, NaN left out; (0, 0) where all are NaN."""
    defined = values_R[~np.isnan(values_R)]
    if defined.size == 0:
        return 0.0, 0.0
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


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

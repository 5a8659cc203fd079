"""Numbers that compare conditions of steering: what share of an effect is recovered, and whether routing predicts it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from seawall.artifacts.audit import AuditFigure
from seawall.artifacts.evaluation import Sample
from seawall.config.eval import EvalConfig
from seawall.evaluation.metrics import lost_share
from seawall.evaluation.suite import target

Floats = npt.NDArray[np.float64]
_FEWEST = 4
"""Experts that a rank correlation takes."""


def recovered(
    original: Sequence[Sample], layer: Sequence[Sample], other: Sequence[Sample], group: str, config: EvalConfig
) -> AuditFigure | None:
    """Of what a layer's direction moved in a group, the share that another change moves too; None where nothing moved.

    With the 95 % interval over goals.
    """
    sides = [{one.id: one for one in side if one.group == group} for side in (original, layer, other)]
    ids = list(sides[0])
    labels = [[side[name].label for name in ids] for side in sides]
    goals = [sides[0][name].goal for name in ids]
    lost = lost_share(
        (labels[0], labels[1], labels[2]), goals, target=target(group), resamples=config.bootstrap, seed=config.seed
    )
    if lost is None:
        return None
    share, low, high = lost
    return AuditFigure(1 - share, 1 - high, 1 - low)


def rank_correlation(x: Sequence[float], y: Sequence[float], *, resamples: int, seed: int) -> AuditFigure | None:
    """Spearman's correlation with its 95 % interval over resampled experts; None for too few or where nothing varies."""
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(first) < _FEWEST or len(np.unique(first)) < 2 or len(np.unique(second)) < 2:
        return None
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        some = generator.integers(len(first), size=len(first))
        if len(np.unique(first[some])) > 1 and len(np.unique(second[some])) > 1:
            drawn.append(_spearman(first[some], second[some]))
    value = _spearman(first, second)
    low, high = (float(end) for end in np.quantile(drawn, (0.025, 0.975)))
    return AuditFigure(value, min(low, value), max(high, value))


def _spearman(first: Floats, second: Floats) -> float:
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: Floats) -> Floats:
    """Ranks from 0; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: Floats = ends - (counts + 1) / 2
    return means[inverse]

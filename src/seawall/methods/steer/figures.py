"""Numbers of steering: what share of an effect is recovered, and whether routing predicts an effect."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from seawall.artifacts.audit import AuditFigure
from seawall.artifacts.directions import Directions, Place
from seawall.artifacts.evaluation import Sample
from seawall.artifacts.groups import target
from seawall.artifacts.steering import SteeringCandidate, SteeringResult
from seawall.config.eval import EvalConfig
from seawall.evaluation.metrics import lost_share
from seawall.methods.steer.bench import FEW
from seawall.methods.steer.changes import SIGN

Floats = npt.NDArray[np.float64]
ORIGINAL_SCORE = {"suppress": "original_score", "induce": "original_attack_score"}
"""Mode -> the figure with the original model's mean refusal score on the prompts whose refusal is to be moved."""
ON_FEW = "_on_few"
"""How that figure's name ends where it is of the first prompts alone, by which candidates are sorted out."""
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


def expert_effects(found: SteeringResult, directions: Directions, *, max_kl: float) -> dict[Place, float]:
    """How far each single expert moves the refusal score, at the best of its settings within the cap.

    Searched experts and the control below the threshold alike. Left out are experts that were never within the cap, and
    those that were tried at the layer's own position alone: of more settings the best is better.
    """
    tried, sign = [*found.of_family("expert"), *found.of_family("random_expert")], SIGN[found.mode]
    everywhere = {(one.experts[0], one.position) for one in tried}
    best: dict[Place, float] = {}
    for one in tried:
        place, effect = one.experts[0], effect_of(found, one)
        if effect is None or one.harmless_kl is None or one.harmless_kl > max_kl:
            continue
        if not all((place, position) in everywhere for position in directions.positions):
            continue
        if place not in best or sign * effect > sign * best[place]:
            best[place] = effect
    return {place: best[place] for place in directions.candidates if place in best}


def routing_correlation(
    found: SteeringResult, directions: Directions, *, max_kl: float, config: EvalConfig
) -> AuditFigure | None:
    """Rank correlation of the experts' routing difference with how far they move the score the way it is to go."""
    effects = expert_effects(found, directions, max_kl=max_kl)
    return rank_correlation(
        [directions.difference(place) for place in effects],
        [SIGN[found.mode] * effect for effect in effects.values()],
        resamples=config.bootstrap,
        seed=config.seed,
    )


def effect_of(found: SteeringResult, one: SteeringCandidate) -> float | None:
    """How far a candidate moves the mean refusal score, from that of the original model on the same prompts."""
    name = ORIGINAL_SCORE["suppress" if one.family == "layer" else found.mode]
    if one.refusal_score is None:
        return None
    original = found.figures[name if one.prompts > FEW else f"{name}{ON_FEW}"]
    return one.refusal_score - original.value


def rank_correlation(x: Sequence[float], y: Sequence[float], *, resamples: int, seed: int) -> AuditFigure | None:
    """Spearman's correlation with its 95 % interval over resampled experts; None for too few or none that vary."""
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

"""Figures of steering: recovered shares of an effect, and the rank correlation of routing and effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from seawall.artifacts.audit import AuditFigure
from seawall.artifacts.directions import Directions, Place
from seawall.artifacts.evaluation import Sample
from seawall.artifacts.groups import CountedVerdict, target
from seawall.artifacts.steering import SteeringCandidate, SteeringResult
from seawall.config.eval import EvalConfig
from seawall.evaluation.metrics import lost_share, paired_difference
from seawall.methods.steer.evaluator import SCREENING
from seawall.methods.steer.interventions import SIGN

Floats = npt.NDArray[np.float64]
ORIGINAL_SCORE = {"suppress": "original_score", "induce": "original_attack_score"}
"""Mode -> the figure with the original model's mean refusal score on the prompts whose refusal is to be moved."""
ON_SCREENING = "_on_few"
"""Suffix of that figure's name for the screening prompts alone."""
_ROUNDING = 1e-9
"""Correlations that differ by less are equal."""
_MIN_EXPERTS = 4
"""Smallest number of experts for a rank correlation."""


def recovered(
    original: Sequence[Sample], layer: Sequence[Sample], change: Sequence[Sample], group: str, config: EvalConfig
) -> AuditFigure | None:
    """Share of a layer direction's effect in a group that another change recovers, with a 95 % interval over goals.

    None where the layer's direction does not clearly lower the group's rate: refusal of plain requests in mode
    suppress, attack success in mode induce. A share of no effect, or of one of the wrong sign, means nothing.
    """
    sides = [{sample.id: sample for sample in side if sample.group == group} for side in (original, layer, change)]
    ids = list(sides[0])
    before, full, part = ([side[name].outcome for name in ids] for side in sides)
    goals = [sides[0][name].goal for name in ids]
    counted, resamples, seed = target(group), config.bootstrap, config.seed
    effect = paired_difference(before, full, goals, target=counted, resamples=resamples, seed=seed)
    if not effect.is_clear or effect.difference > 0:
        return None
    lost = lost_share((before, full, part), goals, target=counted, resamples=resamples, seed=seed)
    if lost is None:
        return None
    share, low, high = lost
    return AuditFigure(1 - share, 1 - high, 1 - low)


def over_vectors(
    original: Sequence[Sample], vectors: Sequence[Sequence[Sample]], group: str, config: EvalConfig
) -> AuditFigure | None:
    """Mean change of a group's rate over several random vectors; the interval resamples vectors and goals.

    Each prompt counts where it is scored on both sides. None without a vector or a scored prompt.
    """
    before = {sample.id: sample for sample in original if sample.group == group}
    goals, goal_of_C = np.unique([sample.goal for sample in before.values()], return_inverse=True)
    rows = [_changes(before, samples, target(group)) for samples in vectors]
    if not rows or np.isnan(rows).all():
        return None
    changes_VC = np.stack(rows)
    # Sums and counts by vector and goal, so that a resample is a product.
    scored_VC = ~np.isnan(changes_VC)
    of_goal_CG = np.eye(len(goals))[goal_of_C]
    sums_VG, counts_VG = np.nan_to_num(changes_VC) @ of_goal_CG, scored_VC.astype(np.float64) @ of_goal_CG
    generator = np.random.default_rng(config.seed)
    means = []
    for _ in range(config.bootstrap):
        vector_weights = np.bincount(generator.integers(len(rows), size=len(rows)), minlength=len(rows))
        goal_weights = np.bincount(generator.integers(len(goals), size=len(goals)), minlength=len(goals))
        count = vector_weights @ counts_VG @ goal_weights
        if count:
            means.append(float(vector_weights @ sums_VG @ goal_weights / count))
    value = float(np.nanmean(changes_VC))
    low, high = (float(end) for end in np.quantile(means, (0.025, 0.975)))
    return AuditFigure(value, min(low, value), max(high, value))


def _changes(before: Mapping[str, Sample], after: Sequence[Sample], counted: CountedVerdict) -> Floats:
    """Change of each prompt's verdict, -1 to 1; NaN where a side is unscored."""
    outcomes = {sample.id: sample.outcome for sample in after}
    pairs = [(sample.outcome, outcomes[name]) for name, sample in before.items()]
    return np.array([np.nan if "unscored" in pair else (pair[1] == counted) - (pair[0] == counted) for pair in pairs])


def expert_effects(result: SteeringResult, directions: Directions, *, max_kl: float) -> dict[Place, float]:
    """Change of the refusal score by each single expert, at its best candidate within the cap.

    Covers searched experts and the control below the threshold. Left out are experts without a candidate within the
    cap, and experts tried only at the layer's own position: a best of fewer candidates is not comparable.
    """
    tried, sign = [*result.of_family("expert"), *result.of_family("random_expert")], SIGN[result.mode]
    positions_tried = {(candidate.experts[0], candidate.position) for candidate in tried}
    best: dict[Place, float] = {}
    for candidate in tried:
        place, effect = candidate.experts[0], effect_of(result, candidate)
        if effect is None or candidate.harmless_kl is None or candidate.harmless_kl > max_kl:
            continue
        if not all((place, position) in positions_tried for position in directions.positions):
            continue
        if place not in best or sign * effect > sign * best[place]:
            best[place] = effect
    return {place: best[place] for place in directions.candidates if place in best}


def routing_correlation(
    result: SteeringResult, directions: Directions, *, max_kl: float, config: EvalConfig
) -> AuditFigure | None:
    """Rank correlation of the experts' routing difference and their effect on the refusal score, signed by mode."""
    effects = expert_effects(result, directions, max_kl=max_kl)
    return rank_correlation(
        [directions.difference(place) for place in effects],
        [SIGN[result.mode] * effect for effect in effects.values()],
        resamples=config.bootstrap,
        seed=config.seed,
    )


def effect_of(result: SteeringResult, candidate: SteeringCandidate) -> float | None:
    """Change of the mean refusal score by a candidate, from the original model's on the same prompts."""
    name = ORIGINAL_SCORE["suppress" if candidate.family == "layer" else result.mode]
    if candidate.refusal_score is None:
        return None
    original = result.figures[name if candidate.prompts > SCREENING else f"{name}{ON_SCREENING}"]
    return candidate.refusal_score - original.value


def rank_correlation(x: Sequence[float], y: Sequence[float], *, resamples: int, seed: int) -> AuditFigure | None:
    """Spearman's correlation with a 95 % interval over resampled experts, and the p-value of shuffled experts.

    None for too few or constant values.
    """
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(first) < _MIN_EXPERTS or len(np.unique(first)) < 2 or len(np.unique(second)) < 2:
        return None
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        rows = generator.integers(len(first), size=len(first))
        if len(np.unique(first[rows])) > 1 and len(np.unique(second[rows])) > 1:
            drawn.append(_spearman(first[rows], second[rows]))
    value = _spearman(first, second)
    low, high = (float(end) for end in np.quantile(drawn, (0.025, 0.975)))
    shuffled = [_spearman(first, generator.permutation(second)) for _ in range(resamples)]
    extreme = sum(abs(correlation) >= abs(value) - _ROUNDING for correlation in shuffled)
    return AuditFigure(value, min(low, value), max(high, value), (extreme + 1) / (resamples + 1))


def _spearman(first: Floats, second: Floats) -> float:
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: Floats) -> Floats:
    """Ranks from 0; ties have their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: Floats = ends - (counts + 1) / 2
    return means[inverse]

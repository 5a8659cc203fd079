"""Selection of a layer's direction, after Arditi et al. (arXiv 2406.11717): lowest refusal score under ablation."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite

from seawall.artifacts.steering import SteeringCandidate
from seawall.methods.steer.evaluator import SCREENING, CandidateEvaluator
from seawall.methods.steer.interventions import Intervention
from seawall.methods.steer.options import LayerLimits
from seawall.methods.steer.reasons import (
    ALIKE,
    HARMLESS_KL,
    LAST_LAYERS,
    NOT_BEST,
    NOT_FINITE,
    NOT_INDUCED,
    by_score,
    with_measurements,
)

FINALISTS = 0.125
"""Share of the candidates measured on all prompts at a time, in the order of their screening score."""
SLACK = 3.0
"""Factor of the cap on the screening prompts, whose mean divergence is a rough estimate."""


def select_layer_direction(evaluator: CandidateEvaluator, limits: LayerLimits) -> list[SteeringCandidate]:
    """All candidates (layer, position) with their measurements; those that pass come first, best first.

    A candidate passes if it is not in the last layers, its ablation (at block inputs, attention outputs and MLP outputs
    of all layers) costs at most `max_kl` on harmless prompts, and adding it gives harmless prompts a refusal score of 0
    or more. The best has the lowest refusal score on harmful prompts under ablation.

    Args:
        evaluator: with harmful prompts as those to be moved.
        limits: the caps.
    """
    count = evaluator.directions.num_layers
    candidates = [
        Intervention("layer", layer, (), position).candidate(limits.coefficient)
        for layer in range(count)
        for position in evaluator.directions.positions
    ]
    # Discard the last 20 % of layers.
    first_dropped = int(count * (1 - limits.drop_last))
    early = [candidate for candidate in candidates if candidate.layer < first_dropped]
    # Template tokens enter the first layer identically in every prompt, so their direction is 0.
    tried = [
        candidate
        for candidate in early
        if bool(evaluator.directions.of_layer(candidate.layer, candidate.position).any())
    ]
    reasons = dict.fromkeys(candidates, LAST_LAYERS) | dict.fromkeys(early, ALIKE)
    if limits.pruned:
        _pruned(evaluator, tried, limits, reasons)
    else:
        _checked(evaluator, tried, limits, reasons)
        evaluator.measure(tried, "score")
        evaluator.measure(tried, "induced")
    measured = [with_measurements(evaluator, candidate, reasons[candidate]) for candidate in candidates]
    return [*by_score(measured, "suppress"), *(candidate for candidate in measured if not candidate.kept)]


def _pruned(
    evaluator: CandidateEvaluator,
    tried: Sequence[SteeringCandidate],
    limits: LayerLimits,
    reasons: dict[SteeringCandidate, str],
) -> None:
    """Screening scores of all candidates, then all checks on all prompts for the best, until one passes."""
    evaluator.measure(tried, "score", ["screening"])
    order = sorted(tried, key=lambda candidate: _finite_first(evaluator.mean(candidate, "score")))
    reasons |= dict.fromkeys(tried, NOT_BEST)
    size = max(SCREENING, round(FINALISTS * len(tried)))
    for start in range(0, len(order), size):
        finalists = order[start : start + size]
        evaluator.measure(finalists, "kl", ["screening"])
        within = [candidate for candidate in finalists if evaluator.mean(candidate, "kl") <= SLACK * limits.max_kl]
        reasons |= {candidate: _kl_reason(evaluator, candidate) for candidate in finalists if candidate not in within}
        _checked(evaluator, within, limits, reasons)
        if not all(reasons[candidate] for candidate in finalists):
            return


def _checked(
    evaluator: CandidateEvaluator,
    candidates: Sequence[SteeringCandidate],
    limits: LayerLimits,
    reasons: dict[SteeringCandidate, str],
) -> None:
    """The checks on all prompts; each check only for candidates that passed the one before."""
    # Harmless KL of the ablation at most the cap (0.1 in the paper).
    evaluator.measure(candidates, "kl")
    within = [candidate for candidate in candidates if evaluator.mean(candidate, "kl") <= limits.max_kl]
    reasons |= {candidate: _kl_reason(evaluator, candidate) for candidate in candidates if candidate not in within}
    # Adding the direction gives harmless prompts a refusal score of at least 0.
    evaluator.measure(within, "induced")
    inducing = [candidate for candidate in within if evaluator.mean(candidate, "induced") >= 0]
    reasons |= dict.fromkeys(within, NOT_INDUCED)
    # Refusal score of harmful prompts under the ablation, which ranks the candidates.
    evaluator.measure(inducing, "score")
    reasons |= {candidate: "" if isfinite(evaluator.mean(candidate, "score")) else NOT_FINITE for candidate in inducing}


def _kl_reason(evaluator: CandidateEvaluator, candidate: SteeringCandidate) -> str:
    return HARMLESS_KL if isfinite(evaluator.mean(candidate, "kl")) else NOT_FINITE


def _finite_first(score: float) -> float:
    return score if isfinite(score) else inf

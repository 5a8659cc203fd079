"""Selecting a layer's direction, after Arditi et al. (arXiv 2406.11717): the one whose ablation refuses least."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite

from seawall.artifacts.steering import SteeringCandidate
from seawall.methods.steer.bench import FEW, Bench
from seawall.methods.steer.changes import Way
from seawall.methods.steer.options import LayerLimits
from seawall.methods.steer.verdicts import (
    ALIKE,
    HARMLESS_KL,
    LAST_LAYERS,
    NOT_BEST,
    NOT_FINITE,
    NOT_INDUCED,
    by_score,
    with_numbers,
)

FINALISTS = 0.125
"""Share of the candidates that are measured on all prompts at once, best on the first prompts first."""
SLACK = 3.0
"""How many times the cap a divergence may be on the first prompts: their mean is rough."""


def select_layer_direction(bench: Bench, limits: LayerLimits) -> list[SteeringCandidate]:
    """All candidates (layer, position) with their numbers, those that pass first, the best of them at the front.

    A candidate passes where it is not among the last layers, its ablation (at block inputs, attention outputs and MLP
    outputs of all layers) costs harmless prompts at most `max_kl`, and adding it makes them score above 0. Best is the
    lowest refusal score of harmful prompts under ablation.

    Args:
        bench: with harmful prompts as those to be moved.
        limits: the caps.
    """
    count = bench.directions.num_layers
    every = [
        Way("layer", layer, (), position).at(limits.coefficient)
        for layer in range(count)
        for position in bench.directions.positions
    ]
    first_dropped = int(count * (1 - limits.drop_last))
    early = [one for one in every if one.layer < first_dropped]
    # The template's own tokens enter the first layer the same in every prompt.
    tried = [one for one in early if bool(bench.directions.of_layer(one.layer, one.position).any())]
    reasons = dict.fromkeys(every, LAST_LAYERS) | dict.fromkeys(early, ALIKE)
    if limits.pruned:
        _pruned(bench, tried, limits, reasons)
    else:
        _checked(bench, tried, limits, reasons)
        bench.read(tried, "score")
        bench.read(tried, "induced")
    found = [with_numbers(bench, one, reasons[one]) for one in every]
    best_first = by_score(found, "suppress")
    return [*best_first, *(one for one in found if not one.kept)]


def _pruned(
    bench: Bench, tried: Sequence[SteeringCandidate], limits: LayerLimits, reasons: dict[SteeringCandidate, str]
) -> None:
    """The score of all on the first prompts; then all checks on all prompts for the best, and on, until one passes."""
    bench.read(tried, "score", ["few"])
    order = sorted(tried, key=lambda one: _last_if_broken(bench.mean(one, "score")))
    reasons |= dict.fromkeys(tried, NOT_BEST)
    size = max(FEW, round(FINALISTS * len(tried)))
    for start in range(0, len(order), size):
        finalists = order[start : start + size]
        bench.read(finalists, "kl", ["few"])
        within = [one for one in finalists if bench.mean(one, "kl") <= SLACK * limits.max_kl]
        reasons |= {one: _kl_reason(bench, one) for one in finalists if one not in within}
        _checked(bench, within, limits, reasons)
        if not all(reasons[one] for one in finalists):
            return


def _checked(
    bench: Bench, candidates: Sequence[SteeringCandidate], limits: LayerLimits, reasons: dict[SteeringCandidate, str]
) -> None:
    """The checks on all prompts, the next one only for those that passed the last."""
    bench.read(candidates, "kl")
    within = [one for one in candidates if bench.mean(one, "kl") <= limits.max_kl]
    reasons |= {one: _kl_reason(bench, one) for one in candidates if one not in within}
    bench.read(within, "induced")
    inducing = [one for one in within if bench.mean(one, "induced") >= 0]
    reasons |= dict.fromkeys(within, NOT_INDUCED)
    bench.read(inducing, "score")
    reasons |= {one: "" if isfinite(bench.mean(one, "score")) else NOT_FINITE for one in inducing}


def _kl_reason(bench: Bench, candidate: SteeringCandidate) -> str:
    return HARMLESS_KL if isfinite(bench.mean(candidate, "kl")) else NOT_FINITE


def _last_if_broken(score: float) -> float:
    return score if isfinite(score) else inf

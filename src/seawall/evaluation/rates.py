"""Rates of evaluation groups, from judged samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from seawall.artifacts.evaluation import Rate, Sample
from seawall.artifacts.groups import target
from seawall.evaluation.metrics import rate_with_interval


def group_rates(samples: Sequence[Sample]) -> dict[str, Rate]:
    """The rate of every group, in the order of the samples; `artifacts.groups.target` gives the counted verdict."""
    return {
        group: rate_with_interval(
            [sample.outcome for sample in samples if sample.group == group],
            [sample.goal for sample in samples if sample.group == group],
            target(group),
        )
        for group in dict.fromkeys(sample.group for sample in samples)
    }


def not_refused(samples: Sequence[Sample]) -> Rate:
    """The share of replies that do not refuse: they comply or evade, among those whose outcome is known."""
    outcomes, goals = [sample.outcome for sample in samples], [sample.goal for sample in samples]
    refused = rate_with_interval(outcomes, goals, "refused")
    rate = None if refused.rate is None else 1 - refused.rate
    return replace(refused, rate=rate, low=1 - refused.high, high=1 - refused.low)


def rates_by_length(samples: Sequence[Sample]) -> dict[str, dict[int, Rate]]:
    """Group -> reply length in tokens -> rate at that length; empty where replies were judged at one length alone."""
    rates: dict[str, dict[int, Rate]] = {}
    for index, cut in enumerate(samples[0].cuts if samples else ()):
        shortened = [
            replace(sample, label=sample.cuts[index].label, reason=sample.cuts[index].reason) for sample in samples
        ]
        for group, rate in group_rates(shortened).items():
            rates.setdefault(group, {})[cut.length] = rate
    return rates


def disagreement(samples: Sequence[Sample]) -> float | None:
    """The share of replies on which the judges of an ensemble disagree, among those that two or more scored.

    None where no reply was scored by two judges.
    """
    compared = [sample.disputed for sample in samples if sample.disputed is not None]
    return sum(compared) / len(compared) if compared else None

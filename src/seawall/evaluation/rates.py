"""Rates of evaluation groups, from judged samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from seawall.artifacts.evaluation import Rate, Sample
from seawall.artifacts.groups import target
from seawall.evaluation.metrics import rate_with_interval


def group_rates(samples: Sequence[Sample], *, resamples: int, seed: int, cautious: bool = False) -> dict[str, Rate]:
    """The rate of every group, in the order of the samples; `artifacts.groups.target` gives the counted verdict."""
    return {
        group: rate_with_interval(
            [sample.label for sample in samples if sample.group == group],
            [sample.goal for sample in samples if sample.group == group],
            target(group),
            resamples=resamples,
            seed=seed,
            cautious=cautious,
        )
        for group in dict.fromkeys(sample.group for sample in samples)
    }


def rates_by_length(samples: Sequence[Sample], *, resamples: int, seed: int) -> dict[str, dict[int, Rate]]:
    """Group -> reply length in tokens -> rate at that length; empty where replies were judged at one length alone."""
    rates: dict[str, dict[int, Rate]] = {}
    for index, cut in enumerate(samples[0].cuts if samples else ()):
        shortened = [replace(sample, label=sample.cuts[index].label) for sample in samples]
        for group, rate in group_rates(shortened, resamples=resamples, seed=seed).items():
            rates.setdefault(group, {})[cut.length] = rate
    return rates


def disagreement(samples: Sequence[Sample]) -> float | None:
    """The share of replies on which the judges of an ensemble disagree, among those that two or more scored.

    None where no reply was scored by two judges.
    """
    compared = [sample.disputed for sample in samples if sample.disputed is not None]
    return sum(compared) / len(compared) if compared else None

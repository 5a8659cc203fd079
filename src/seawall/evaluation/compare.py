"""Two evaluations side by side: the same prompts put to a model before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from seawall.artifacts.evaluation import CapabilityScore, EvalResult, Rate, Sample
from seawall.artifacts.groups import CountedVerdict, target
from seawall.errors import ArtifactError
from seawall.evaluation.metrics import (
    Difference,
    Increase,
    paired_difference,
    paired_score_difference,
    relative_increase,
)
from seawall.evaluation.run import group_rates

_FEWEST = 2
"""Gold questions that it takes for an interval."""

NonInferiority = Literal["non-inferior", "inferior", "unclear"]
"""Whether a loss is smaller than a margin, larger, or not known well enough to say."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One group before and after. `target` is the verdict that both rates count."""

    group: str
    target: CountedVerdict
    before: Rate
    after: Rate
    change: Difference


@dataclass(frozen=True, slots=True)
class CapabilityChange:
    """One metric of one task before and after."""

    before: CapabilityScore
    after: CapabilityScore
    change: Difference

    @property
    def name(self) -> str:
        """`TASK METRIC`."""
        return f"{self.before.task} {self.before.metric}"

    @property
    def lost(self) -> tuple[float, float, float]:
        """How much of the score was lost, and the ends of its 95 % interval; below zero where it was gained."""
        change = self.change
        if self.before.higher_is_better:
            return 0.0 - change.difference, 0.0 - change.high, 0.0 - change.low
        return change.difference, change.low, change.high

    def verdict(self, margin: float) -> NonInferiority:
        """Whether less than `margin` was lost, by the interval: a change within it that is not shown is unclear."""
        _, low, high = self.lost
        return "non-inferior" if high < margin else "inferior" if low > margin else "unclear"


def compare(
    before: Sequence[Sample],
    after: Sequence[Sample],
    *,
    resamples: int = 2000,
    seed: int = 0,
    cautious: bool = False,
) -> dict[str, Comparison]:
    """Every group's rates and the paired difference between them, in the order of `before`.

    Args:
        before, after: samples of two evaluations of the same suite, in any order.
        resamples: of the goals, for intervals and p-values.
        seed: of the resamples.
        cautious: intervals to hold a model to a limit by, as `metrics` describes them.

    Raises:
        ArtifactError: the two did not ask the same.
    """
    later = {sample.id: sample for sample in after}
    _check_same(before, later)
    ordered = [later[sample.id] for sample in before]
    rates_before, rates_after = (
        group_rates(side, resamples=resamples, seed=seed, cautious=cautious) for side in (before, ordered)
    )
    found = {}
    for group, rate in rates_before.items():
        rows = [sample for sample in before if sample.group == group]
        change = paired_difference(
            [sample.label for sample in rows],
            [later[sample.id].label for sample in rows],
            [sample.goal for sample in rows],
            target=target(group),
            resamples=resamples,
            seed=seed,
            cautious=cautious,
        )
        found[group] = Comparison(group, target(group), rate, rates_after[group], change)
    return found


def gold_increase(before: EvalResult, after: EvalResult, *, resamples: int = 2000, seed: int = 0) -> Increase | None:
    """By what share the loss on gold answers grew, question by question; None where it was not measured.

    Args:
        before, after: two evaluations with the same gold questions.
        resamples: of the questions, for the interval.
        seed: of the resamples.

    Raises:
        ArtifactError: the losses of the questions were not kept, are of other questions, or of a single one.
    """
    losses = (before.gold_loss, after.gold_loss)
    if None in losses:
        return None
    if not before.gold or not after.gold:
        raise ArtifactError(
            "an evaluation did not keep the loss of every gold question, so the change has no interval",
            got=f"the means {losses[0]} and {losses[1]} alone, as earlier versions of seawall left them",
            remedy="run the recipe again into a new folder",
        )
    if [(one.id, one.tokens) for one in before.gold] != [(one.id, one.tokens) for one in after.gold]:
        raise ArtifactError(
            "the two evaluations measured the loss of different gold answers",
            got=f"{before.gold_n} and {after.gold_n} questions",
            expected="the same questions",
            remedy="evaluate both models with the same recipe",
        )
    if len(before.gold) < _FEWEST:
        raise ArtifactError("a single gold question has no interval", expected="more", remedy="add gold questions")
    nats = ([one.nats for one in result.gold] for result in (before, after))
    return relative_increase(*nats, resamples=resamples, seed=seed)


def capability_changes(
    before: EvalResult, after: EvalResult, *, resamples: int = 2000, seed: int = 0
) -> list[CapabilityChange]:
    """How every score of capability moved, question by question; empty where it was not measured.

    The intervals are the cautious ones of `metrics`, since a verdict on a margin is read from them: resamples of twelve
    questions of which one turned right never draw a loss, which would make any margin look kept.

    Args:
        before, after: two evaluations with the same tasks.
        resamples: of the questions, for intervals and p-values.
        seed: of the resamples.

    Raises:
        ArtifactError: the tasks or their questions differ.
    """
    asked = [[(one.task, one.metric, one.ids) for one in side.capability] for side in (before, after)]
    if asked[0] != asked[1]:
        raise ArtifactError(
            "the two evaluations measured capability on different questions",
            got=f"{sum(one.n for one in before.capability)} and {sum(one.n for one in after.capability)} scores",
            expected="the same tasks and questions",
            remedy="evaluate both models with the same recipe",
        )
    return [
        CapabilityChange(
            one,
            other,
            paired_score_difference(one.values, other.values, resamples=resamples, seed=seed, cautious=True),
        )
        for one, other in zip(before.capability, after.capability, strict=True)
    ]


def _check_same(before: Sequence[Sample], later: dict[str, Sample]) -> None:
    differing = [sample.id for sample in before if sample.id not in later or later[sample.id].prompt != sample.prompt]
    if differing or len(before) != len(later):
        raise ArtifactError(
            "the two evaluations did not ask the same",
            got=f"{len(before)} and {len(later)} samples, {len(differing)} differing"
            + (f", such as {differing[0]}" if differing else ""),
            expected="the same prompts before and after",
            remedy="evaluate both models with the same recipe",
        )

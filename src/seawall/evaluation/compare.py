"""Compares two evaluations of the same prompts, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from seawall.artifacts.evaluation import CapabilityScore, Difference, EvalResult, Rate, Sample
from seawall.artifacts.groups import CountedVerdict, is_attack, target
from seawall.errors import ArtifactError
from seawall.evaluation.metrics import (
    Increase,
    paired_difference,
    paired_score_difference,
    relative_increase,
)
from seawall.evaluation.rates import group_rates
from seawall.evaluation.suite import asked

MIN_QUESTIONS = 2
"""Minimum number of gold questions for an interval."""

NonInferiority = Literal["non-inferior", "inferior", "unclear"]
"""Whether the interval of a loss lies below a margin, above it, or contains it."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One group before and after; `target` is the verdict that both rates count."""

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
        """The loss of the score with the ends of its 95 % interval; negative for a gain."""
        change = self.change
        if self.before.higher_is_better:
            return 0.0 - change.difference, 0.0 - change.high, 0.0 - change.low
        return change.difference, change.low, change.high

    def verdict(self, margin: float) -> NonInferiority:
        """Whether the score is non-inferior by `margin`, decided by the interval of the loss."""
        _, low, high = self.lost
        return "non-inferior" if high < margin else "inferior" if low > margin else "unclear"


def compare(
    before: Sequence[Sample],
    after: Sequence[Sample],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Every group's rates and their paired difference, in the order of `before`.

    Args:
        before, after: samples of two evaluations of the same suite, in any order.
        resamples: number of resamples of the goals, for p-values.
        seed: seed of the resamples.

    Raises:
        ArtifactError: the two evaluations have different prompts.
    """
    later = {sample.id: sample for sample in after}
    _check_same(before, later, len(after))
    ordered = [later[sample.id] for sample in before]
    rates_before, rates_after = group_rates(before), group_rates(ordered)
    comparisons = {}
    for group, rate in rates_before.items():
        rows = [sample for sample in before if sample.group == group]
        change = paired_difference(
            [sample.outcome for sample in rows],
            [later[sample.id].outcome for sample in rows],
            [sample.goal for sample in rows],
            target=target(group),
            resamples=resamples,
            seed=seed,
        )
        comparisons[group] = Comparison(group, target(group), rate, rates_after[group], change)
    return comparisons


def refusal_changes(
    before: Sequence[Sample], after: Sequence[Sample], *, resamples: int = 2000, seed: int = 0
) -> dict[str, Difference]:
    """The paired change of the refusal rate of every attack family, by group; arguments and errors as in `compare`."""
    later = {sample.id: sample for sample in after}
    _check_same(before, later, len(after))
    families = dict.fromkeys(sample.group for sample in before if is_attack(sample.group))
    rows = {group: [sample for sample in before if sample.group == group] for group in families}
    return {
        group: paired_difference(
            [sample.outcome for sample in family],
            [later[sample.id].outcome for sample in family],
            [sample.goal for sample in family],
            target="refused",
            resamples=resamples,
            seed=seed,
        )
        for group, family in rows.items()
    }


def same_gold(before: EvalResult, after: EvalResult) -> bool:
    """Whether both evaluations have losses of the same gold questions and answers, in one order."""
    pairs = zip(before.gold, after.gold, strict=False)
    return len(before.gold) == len(after.gold) and all(first.pairs_with(second) for first, second in pairs)


def gold_increase(before: EvalResult, after: EvalResult, *, resamples: int = 2000, seed: int = 0) -> Increase | None:
    """The relative increase of the loss on gold answers, paired by question; None where it was not measured.

    Args:
        before, after: two evaluations with the same gold questions.
        resamples: number of resamples of the questions, for the interval.
        seed: seed of the resamples.

    Raises:
        ArtifactError: the evaluations lack losses per question, have different questions, or a single question.
    """
    losses = (before.gold_loss, after.gold_loss)
    if None in losses:
        return None
    if not before.gold or not after.gold:
        raise ArtifactError(
            "an evaluation lacks the losses of single gold questions, so the change has no interval",
            got=f"the means {losses[0]} and {losses[1]} alone, as earlier versions of seawall saved them",
            remedy="run the recipe again into a new folder",
        )
    if not same_gold(before, after):
        raise ArtifactError(
            "the two evaluations have different gold questions",
            got=f"{before.gold_n} and {after.gold_n} questions",
            expected="the same questions",
            remedy="evaluate both models with the same recipe",
        )
    if len(before.gold) < MIN_QUESTIONS:
        raise ArtifactError(
            "a single gold question has no interval", expected="two or more", remedy="add gold questions"
        )
    nats = ([answer.nats for answer in result.gold] for result in (before, after))
    return relative_increase(*nats, resamples=resamples, seed=seed)


def capability_changes(
    before: EvalResult, after: EvalResult, *, resamples: int = 2000, seed: int = 0
) -> list[CapabilityChange]:
    """The change of every capability score, paired by question; empty where capability was not measured.

    Args:
        before, after: two evaluations with the same tasks.
        resamples: number of resamples of the questions, for p-values.
        seed: seed of the resamples.

    Raises:
        ArtifactError: the tasks or their questions differ.
    """
    questions = [[(score.task, score.metric, score.ids) for score in side.capability] for side in (before, after)]
    if questions[0] != questions[1]:
        raise ArtifactError(
            "the two evaluations have different capability questions",
            got=" and ".join(f"{sum(score.n for score in side.capability)}" for side in (before, after)) + " scores",
            expected="the same tasks and questions",
            remedy="evaluate both models with the same recipe",
        )
    return [
        CapabilityChange(
            first,
            second,
            paired_score_difference(first.values, second.values, resamples=resamples, seed=seed),
        )
        for first, second in zip(before.capability, after.capability, strict=True)
    ]


def _check_same(before: Sequence[Sample], later: dict[str, Sample], total: int) -> None:
    """Checks that `before` and the `total` samples of `later` pair one by one."""
    differing = [sample.id for sample in before if sample.id not in later or asked(later[sample.id]) != asked(sample)]
    if differing or len(before) != len(later) or len(before) != total:
        raise ArtifactError(
            "the two evaluations have different prompts",
            got=f"{len(before)} and {total} samples, {len(differing)} differing"
            + (f", such as {differing[0]}" if differing else ""),
            expected="the same prompts",
            remedy="evaluate both models with the same recipe",
        )

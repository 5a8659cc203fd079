"""Two evaluations side by side: the same prompts put to a model before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from seawall.artifacts.evaluation import Rate, Sample
from seawall.errors import ArtifactError
from seawall.evaluation.metrics import Difference, Target, paired_difference
from seawall.evaluation.run import group_rates
from seawall.evaluation.suite import target


@dataclass(frozen=True, slots=True)
class Comparison:
    """One group before and after. `target` is the verdict that both rates count."""

    group: str
    target: Target
    before: Rate
    after: Rate
    change: Difference


def compare(
    before: Sequence[Sample], after: Sequence[Sample], *, resamples: int = 2000, seed: int = 0
) -> dict[str, Comparison]:
    """Every group's rates and the paired difference between them, in the order of `before`.

    Args:
        before, after: samples of two evaluations of the same suite, in any order.
        resamples: of the goals, for intervals and p-values.
        seed: of the resamples.

    Raises:
        ArtifactError: the two did not ask the same.
    """
    later = {sample.id: sample for sample in after}
    _check_same(before, later)
    rates_before = group_rates(before, resamples=resamples, seed=seed)
    rates_after = group_rates([later[sample.id] for sample in before], resamples=resamples, seed=seed)
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
        )
        found[group] = Comparison(group, target(group), rate, rates_after[group], change)
    return found


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

"""What differs between two finished runs: selected experts, repairs, rates and loss on gold answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from seawall.artifacts.delta import DeltaOutline
from seawall.artifacts.evaluation import Difference, EvalResult, Rate, Sample
from seawall.artifacts.expert_set import ExpertSet
from seawall.errors import ArtifactError
from seawall.evaluation.compare import compare, gold_increase, same_gold
from seawall.evaluation.metrics import Increase
from seawall.evaluation.suite import asked
from seawall.runs.files import read_json
from seawall.runs.stage import finished_stage
from seawall.shell.conditions import renderings, unlike
from seawall.shell.evaluated import open_evaluation
from seawall.shell.finished import FinishedRun


@dataclass(frozen=True, slots=True)
class ExpertsDifference:
    """Two selections: experts of each MoE layer in both, or in one alone, and their Jaccard similarity."""

    shared: tuple[tuple[int, ...], ...]
    only_a: tuple[tuple[int, ...], ...]
    only_b: tuple[tuple[int, ...], ...]
    jaccard: float


@dataclass(frozen=True, slots=True)
class RepairFacts:
    """The change made by one run.

    Attributes:
        base_model: fingerprint of the weights before.
        result_model: fingerprint of the weights after.
        tensors: number of tensors in the delta.
        slices: number of changed slices of stacked tensors; fully changed tensors are not counted.
        drift: routing drift by MoE layer, 0 to 1.
        parameters: what the expert step trained, `repair.parameters`.
    """

    base_model: str
    result_model: str
    tensors: int
    slices: int
    drift: tuple[float, ...]
    parameters: str


@dataclass(frozen=True, slots=True)
class GroupDifference:
    """Rates of a group after each run's repair; B - A only where both asked and judged alike."""

    group: str
    a: Rate
    b: Rate
    change: Difference | None


@dataclass(frozen=True, slots=True)
class GoldDifference:
    """Losses of A and of B; the increase from A to B only where both have the same questions."""

    a: float
    b: float
    change: Increase | None


@dataclass(frozen=True, slots=True)
class RunDifference:
    """Two finished runs.

    Attributes:
        experts: their selections.
        repairs: the changes of A and of B.
        groups: evaluation groups of both, after the repair.
        gold: loss on gold answers after the repair; None where a run has none.
        limits: maximum number of prompts of every group in A and in B; None for all.
        unlike: why the rates of A and B do not mean the same; empty where they do.
    """

    experts: ExpertsDifference
    repairs: tuple[RepairFacts, RepairFacts]
    groups: tuple[GroupDifference, ...]
    gold: GoldDifference | None
    limits: tuple[int | None, int | None] = (None, None)
    unlike: str = ""


def compare_runs(a: FinishedRun, b: FinishedRun) -> RunDifference:
    """What differs between two finished runs.

    Raises:
        ArtifactError: their models differ in layers or experts; damaged files.
    """
    evaluations = [open_evaluation(finished.run.stage("eval-after")) for finished in (a, b)]
    apart = unlike(*evaluations)
    groups = _groups(a, b)
    gold = gold_difference(a.after.result, b.after.result, resamples=a.resamples, seed=a.seed)
    if renderings(*evaluations) == "differ" and gold is not None:
        gold = replace(gold, change=None)
    selections = [ExpertSet.load(finished_stage(finished.run, "select")) for finished in (a, b)]
    return RunDifference(
        experts=compare_experts(*selections),
        repairs=(_repair(a), _repair(b)),
        groups=tuple(replace(group, change=None) for group in groups) if apart else tuple(groups),
        gold=gold,
        limits=(a.summary.get("limit"), b.summary.get("limit")),
        unlike=apart,
    )


def compare_experts(a: ExpertSet, b: ExpertSet) -> ExpertsDifference:
    """Shared and separate experts of two selections. Two empty selections are equal.

    Raises:
        ArtifactError: they are of models with other layers or experts.
    """
    shapes = [tuple(selection.scores_LE.shape) for selection in (a, b)]
    if shapes[0] != shapes[1]:
        raise ArtifactError(
            "the runs are of different models",
            got=" and ".join(f"{layers} MoE layers x {experts} experts" for layers, experts in shapes),
            expected="equal numbers of layers and experts",
            remedy="compare runs of one model",
        )
    pairs = [(set(layer_a), set(layer_b)) for layer_a, layer_b in zip(a.layers, b.layers, strict=True)]
    shared = sum(len(layer_a & layer_b) for layer_a, layer_b in pairs)
    union = sum(len(layer_a | layer_b) for layer_a, layer_b in pairs)
    return ExpertsDifference(
        shared=tuple(tuple(sorted(layer_a & layer_b)) for layer_a, layer_b in pairs),
        only_a=tuple(tuple(sorted(layer_a - layer_b)) for layer_a, layer_b in pairs),
        only_b=tuple(tuple(sorted(layer_b - layer_a)) for layer_a, layer_b in pairs),
        jaccard=shared / union if union else 1.0,
    )


def _repair(finished: FinishedRun) -> RepairFacts:
    folder = finished_stage(finished.run, "repair")
    delta = DeltaOutline.load(folder / "delta")
    return RepairFacts(
        base_model=delta.base_model,
        result_model=delta.result_model,
        tensors=len(delta.slices),
        slices=sum(len(indices) for indices in delta.slices.values() if indices is not None),
        drift=tuple(read_json(folder / "outcome.json")["routing_drift"]),
        parameters=finished.recipe["repair"].get("parameters", "selected"),
    )


def _groups(a: FinishedRun, b: FinishedRun) -> list[GroupDifference]:
    groups_a, groups_b = a.after.result.groups, b.after.result.groups
    names = [group for group in groups_a if group in groups_b]
    sides = [_by_group(finished.after.samples) for finished in (a, b)]
    same = [group for group in names if _prompts(sides[0][group]) == _prompts(sides[1][group])]
    samples_a, samples_b = ([sample for group in same for sample in side[group]] for side in sides)
    compared = compare(samples_a, samples_b, resamples=a.resamples, seed=a.seed)
    return [
        GroupDifference(group, groups_a[group], groups_b[group], compared[group].change if group in compared else None)
        for group in names
    ]


def _by_group(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group, []).append(sample)
    return groups


def _prompts(samples: Sequence[Sample]) -> dict[str, Any]:
    return {sample.id: asked(sample) for sample in samples}


def gold_difference(a: EvalResult, b: EvalResult, *, resamples: int, seed: int) -> GoldDifference | None:
    """Losses of two evaluations on gold answers; None where one lacks them."""
    if a.gold_loss is None or b.gold_loss is None:
        return None
    comparable = same_gold(a, b) and len(a.gold) > 1
    change = gold_increase(a, b, resamples=resamples, seed=seed) if comparable else None
    return GoldDifference(a.gold_loss, b.gold_loss, change)

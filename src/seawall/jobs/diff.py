"""Two runs or two checkpoints side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from seawall.artifacts.delta import DeltaOutline
from seawall.artifacts.evaluation import Rate, Sample
from seawall.artifacts.expert_set import ExpertSet
from seawall.errors import ArtifactError, RunFolderError
from seawall.evaluation.compare import compare, gold_increase
from seawall.evaluation.metrics import Difference, Increase
from seawall.models.files.difference import CheckpointDifference, compare_checkpoints
from seawall.runs.files import read_json
from seawall.runs.stage import finished_stage
from seawall.shell.finished import FinishedRun, open_finished

Kind = Literal["run", "checkpoint"]
_MARKS: dict[Kind, str] = {"run": "resolved.json", "checkpoint": "config.json"}


@dataclass(frozen=True, slots=True)
class ExpertsDifference:
    """Two selections: experts of each MoE layer that both hold, or one alone; and their Jaccard similarity."""

    shared: tuple[tuple[int, ...], ...]
    only_a: tuple[tuple[int, ...], ...]
    only_b: tuple[tuple[int, ...], ...]
    jaccard: float


@dataclass(frozen=True, slots=True)
class RepairFacts:
    """What one run changed.

    Attributes:
        base_model: fingerprint of the weights before.
        result_model: of those after.
        tensors: how many the delta touches.
        slices: how many slices of stacked tensors; whole tensors are not counted.
        drift: how far routing moved, by MoE layer, 0 to 1.
    """

    base_model: str
    result_model: str
    tensors: int
    slices: int
    drift: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class GroupDifference:
    """Rates of a group after each run's repair; the difference B - A only where both asked the same prompts."""

    group: str
    a: Rate
    b: Rate
    change: Difference | None


@dataclass(frozen=True, slots=True)
class GoldDifference:
    """Losses after each run's repair; the increase from A to B only where both kept those of the same questions."""

    a: float
    b: float
    change: Increase | None


@dataclass(frozen=True, slots=True)
class RunDifference:
    """Two finished runs.

    Attributes:
        experts: their selections.
        repairs: what A and B changed.
        groups: evaluation groups after the repair that both have.
        gold: loss on gold answers after the repair; None where one of them has none.
    """

    experts: ExpertsDifference
    repairs: tuple[RepairFacts, RepairFacts]
    groups: tuple[GroupDifference, ...]
    gold: GoldDifference | None


def diff(a: Path, b: Path) -> RunDifference | CheckpointDifference:
    """What differs between two run folders, or between two checkpoint folders.

    Raises:
        RunFolderError: a folder is missing, neither, or not finished; a run and a checkpoint.
        ArtifactError: damaged files, or models of different shapes.
        UnsupportedModelError: checkpoints that are no mixture of experts.
    """
    kinds = [_kind(path) for path in (a, b)]
    if kinds[0] != kinds[1]:
        raise RunFolderError(
            f"{a} is a {kinds[0]} and {b} a {kinds[1]}",
            expected="two runs or two checkpoints",
            remedy="name the checkpoint of a run as RUN/model",
        )
    if kinds[0] == "checkpoint":
        return compare_checkpoints(a, b)
    return compare_runs(open_finished(a), open_finished(b))


def compare_runs(a: FinishedRun, b: FinishedRun) -> RunDifference:
    """What differs between two finished runs.

    Raises:
        ArtifactError: their models differ in layers or experts; damaged files.
    """
    chosen = [ExpertSet.load(finished_stage(one.run, "select")) for one in (a, b)]
    return RunDifference(
        experts=compare_experts(*chosen),
        repairs=(_repair(a), _repair(b)),
        groups=tuple(_groups(a, b)),
        gold=_gold(a, b),
    )


def compare_experts(a: ExpertSet, b: ExpertSet) -> ExpertsDifference:
    """What two selections share. Two empty ones are the same.

    Raises:
        ArtifactError: they are of models with other layers or experts.
    """
    shapes = [tuple(one.scores_LE.shape) for one in (a, b)]
    if shapes[0] != shapes[1]:
        raise ArtifactError(
            "the runs are of different models",
            got=" and ".join(f"{layers} MoE layers x {experts} experts" for layers, experts in shapes),
            expected="as many layers and experts",
            remedy="compare runs of one model",
        )
    pairs = [(set(left), set(right)) for left, right in zip(a.layers, b.layers, strict=True)]
    shared = sum(len(left & right) for left, right in pairs)
    either = sum(len(left | right) for left, right in pairs)
    return ExpertsDifference(
        shared=tuple(tuple(sorted(left & right)) for left, right in pairs),
        only_a=tuple(tuple(sorted(left - right)) for left, right in pairs),
        only_b=tuple(tuple(sorted(right - left)) for left, right in pairs),
        jaccard=shared / either if either else 1.0,
    )


def document(found: RunDifference | CheckpointDifference) -> dict[str, Any]:
    """For machines, with `kind` `runs` or `checkpoints`. A number that is none is null."""
    kind = "runs" if isinstance(found, RunDifference) else "checkpoints"
    plain: dict[str, Any] = _plain({"kind": kind, **asdict(found)})
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _kind(path: Path) -> Kind:
    for kind, mark in _MARKS.items():
        if (path / mark).is_file():
            return kind
    got = "a folder without both" if path.is_dir() else "a file" if path.exists() else "no such folder"
    raise RunFolderError(
        f"{path} is neither a run nor a checkpoint",
        got=got,
        expected="a run folder (resolved.json) or a checkpoint folder (config.json)",
        remedy="check the path; a Hub model is compared by the folder of its snapshot",
    )


def _repair(one: FinishedRun) -> RepairFacts:
    folder = finished_stage(one.run, "repair")
    change = DeltaOutline.load(folder / "delta")
    return RepairFacts(
        base_model=change.base_model,
        result_model=change.result_model,
        tensors=len(change.slices),
        slices=sum(len(at) for at in change.slices.values() if at is not None),
        drift=tuple(read_json(folder / "outcome.json")["routing_drift"]),
    )


def _groups(a: FinishedRun, b: FinishedRun) -> list[GroupDifference]:
    left, right = a.after, b.after
    names = [group for group in left.result.groups if group in right.result.groups]
    sides = [_by_group(one.samples) for one in (left, right)]
    same = [group for group in names if _prompts(sides[0][group]) == _prompts(sides[1][group])]
    asked_a, asked_b = ([sample for group in same for sample in side[group]] for side in sides)
    compared = compare(asked_a, asked_b, resamples=a.resamples, seed=a.seed)
    return [
        GroupDifference(
            group,
            left.result.groups[group],
            right.result.groups[group],
            change=compared[group].change if group in compared else None,
        )
        for group in names
    ]


def _by_group(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.group, []).append(sample)
    return found


def _prompts(samples: Sequence[Sample]) -> dict[str, Any]:
    return {sample.id: sample.prompt for sample in samples}


def _gold(a: FinishedRun, b: FinishedRun) -> GoldDifference | None:
    left, right = a.after.result, b.after.result
    if left.gold_loss is None or right.gold_loss is None:
        return None
    questions = [[(answer.id, answer.tokens) for answer in one.gold] for one in (left, right)]
    comparable = questions[0] == questions[1] and len(questions[0]) > 1
    return GoldDifference(
        left.gold_loss,
        right.gold_loss,
        gold_increase(left, right, resamples=a.resamples, seed=a.seed) if comparable else None,
    )

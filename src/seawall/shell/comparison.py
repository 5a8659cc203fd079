"""What differs between two evaluations of the same prompts: rates, wrapping measures, scores, losses, verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from seawall.artifacts.evaluation import Contrast, Difference, Sample
from seawall.config.data import limited_note
from seawall.evaluation.compare import capability_changes, compare
from seawall.evaluation.wrapping import wrapping_changes
from seawall.shell.conditions import renderings, require_comparable, same_capability, shared_groups
from seawall.shell.difference import GoldDifference, GroupDifference, gold_difference
from seawall.shell.evaluated import STAGE, FinishedEvaluation

_OTHER_QUESTIONS = "Capability is left out: the tasks, their settings (the seed among them) or their questions differ."


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """The model of an evaluation.

    Attributes:
        folder: the folder of the evaluation.
        model: its id, with the delta or the adapter, where there is one.
        weights: fingerprint of the weights; address and name at an endpoint.
    """

    folder: str
    model: str
    weights: str


@dataclass(frozen=True, slots=True)
class MeasureDifference:
    """One measure of wrapping in A and in B, and B - A on the same requests."""

    measure: str
    a: Contrast
    b: Contrast
    change: Difference


@dataclass(frozen=True, slots=True)
class ScoreDifference:
    """One score of capability in A and in B, and B - A on the same questions."""

    name: str
    higher_is_better: bool
    a: float
    b: float
    change: Difference


@dataclass(frozen=True, slots=True)
class EvaluationDifference:
    """Two evaluations of the same prompts.

    Attributes:
        a, b: the models.
        groups: rates of the groups that both have, and B - A.
        wrapping: measures of wrapping; empty where one evaluation lacks them.
        scores: of capability; empty where one evaluation lacks them, or has other questions.
        gold: loss on gold answers; None where one evaluation lacks it.
        moves: group -> `complied -> refused` -> number of prompts, of verdicts that differ.
        only_a, only_b: groups that the other evaluation lacks.
        notes: what a reader must know beside the numbers, a sentence each.
    """

    a: EvaluatedModel
    b: EvaluatedModel
    groups: tuple[GroupDifference, ...]
    wrapping: tuple[MeasureDifference, ...]
    scores: tuple[ScoreDifference, ...]
    gold: GoldDifference | None
    moves: Mapping[str, Mapping[str, int]]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    notes: tuple[str, ...]


def compare_evaluations(
    a: FinishedEvaluation, b: FinishedEvaluation, *, across_templates: bool = False
) -> EvaluationDifference:
    """B - A of every measure that both evaluations have; resamples and seed are those of A.

    Raises:
        ArtifactError: as `require_comparable`.
    """
    require_comparable(a, b, across_templates=across_templates)
    groups = [group for group in a.result.groups if group in b.result.groups]
    scores = tuple(_scores(a, b))
    is_left_out = not scores and bool(a.result.capability) and bool(b.result.capability)
    return EvaluationDifference(
        a=_model(a),
        b=_model(b),
        groups=tuple(_groups(a, b, groups)),
        wrapping=tuple(_wrapping(a, b)),
        scores=scores,
        gold=gold_difference(a.result, b.result, resamples=a.resamples, seed=a.seed),
        moves=_moves(*shared_samples(a, b)),
        only_a=tuple(group for group in a.result.groups if group not in groups),
        only_b=tuple(group for group in b.result.groups if group not in groups),
        notes=(*_notes(a, b), *([_OTHER_QUESTIONS] if is_left_out else [])),
    )


def shared_samples(a: FinishedEvaluation, b: FinishedEvaluation) -> tuple[list[Sample], list[Sample]]:
    """The samples of the groups that both evaluations have, B's in the order of A's."""
    groups = shared_groups(a.samples, b.samples)
    later = {sample.id: sample for sample in b.samples}
    samples = [sample for sample in a.samples if sample.group in groups]
    return samples, [later[sample.id] for sample in samples]


def _model(evaluation: FinishedEvaluation) -> EvaluatedModel:
    folder = evaluation.run.path if evaluation.stage == STAGE else evaluation.run.stage(evaluation.stage)
    return EvaluatedModel(str(folder), evaluation.model, evaluation.result.model_fingerprint)


def _groups(a: FinishedEvaluation, b: FinishedEvaluation, groups: Sequence[str]) -> Iterator[GroupDifference]:
    compared = compare(*shared_samples(a, b), resamples=a.resamples, seed=a.seed)
    for group in groups:
        yield GroupDifference(group, a.result.groups[group], b.result.groups[group], compared[group].change)


def _wrapping(a: FinishedEvaluation, b: FinishedEvaluation) -> Iterator[MeasureDifference]:
    first, second = a.result.wrapping, b.result.wrapping
    if first is None or second is None or first.families != second.families:
        return
    changes = wrapping_changes(*shared_samples(a, b), first.families, resamples=a.resamples, seed=a.seed)
    for measure, contrast in first.measures().items():
        if measure in changes:
            yield MeasureDifference(measure, contrast, second.measures()[measure], changes[measure])


def _scores(a: FinishedEvaluation, b: FinishedEvaluation) -> Iterator[ScoreDifference]:
    questions = [[(row.task, row.metric, row.ids) for row in side.result.capability] for side in (a, b)]
    if questions[0] != questions[1] or not same_capability(a, b):
        return
    for row in capability_changes(a.result, b.result, resamples=a.resamples, seed=a.seed):
        yield ScoreDifference(row.name, row.before.higher_is_better, row.before.score, row.after.score, row.change)


def _moves(a: Sequence[Sample], b: Sequence[Sample]) -> dict[str, dict[str, int]]:
    moves: dict[str, Counter[str]] = {}
    for before, after in zip(a, b, strict=True):
        if before.outcome != after.outcome:
            moves.setdefault(before.group, Counter())[f"{before.outcome} -> {after.outcome}"] += 1
    return {group: dict(counts.most_common()) for group, counts in moves.items()}


def _notes(a: FinishedEvaluation, b: FinishedEvaluation) -> Iterator[str]:
    yield from dict.fromkeys(filter(None, (limited_note(side.limit) for side in (a, b))))
    if a.result.model_fingerprint == b.result.model_fingerprint:
        yield "A and B have the same weights."
    rendering = renderings(a, b)
    if rendering == "differ":
        yield "A and B render prompts differently (chat template, its options or tokenizer)."
    elif rendering == "unknown":
        yield "How a prompt was rendered is not known on both sides (a model behind an endpoint, or an old evaluation)."
    computed = [_computing_text(side.inputs.get("computing")) for side in (a, b)]
    if computed[0] != computed[1]:
        yield f"A was computed with {computed[0]}, B with {computed[1]}."
    versions = [side.manifest.get("environment", {}).get("packages", {}) for side in (a, b)]
    changed = [name for name in versions[0] if versions[0][name] != versions[1].get(name, versions[0][name])]
    if changed:
        pairs = (f"{name} {versions[0][name]} and {versions[1][name]}" for name in changed)
        yield f"Versions differ: {', '.join(pairs)}."


def _computing_text(computing: Mapping[str, str] | None) -> str:
    """`device cpu, dtype torch.float32`; experts only where a model has them."""
    if computing is None:
        return "settings that are not known"
    return ", ".join(f"{name} {value}" for name, value in computing.items() if value != "None")

"""The page of an evaluation, alone or against another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from seawall.artifacts.evaluation import Sample
from seawall.artifacts.groups import GOLD, group_name
from seawall.config.data import limited_note
from seawall.errors import ConfigError
from seawall.report import render_evaluation
from seawall.report.evaluation import EvaluationView, PlainRow, ReplyGroup
from seawall.report.inputs import GroupRow, SampleRow
from seawall.report.page import effect
from seawall.report.wording import amount, number, percent, points, points_range, signed
from seawall.report.wrapping import WrappingRow
from seawall.runs.files import storage_errors, write_text
from seawall.runs.lock import locked
from seawall.shell.comparison import EvaluationDifference, compare_evaluations, shared_samples
from seawall.shell.evaluated import STAGE, FinishedEvaluation, open_evaluation

SHOWN_PER_GROUP = 12
_ORDER = {"worse": 0, "better": 1, "other": 2, "same": 3}
"""Replies that a reader wants first."""


def write_evaluation_page(path: Path, *, against: Path | None = None, across_templates: bool = False) -> Path:
    """Writes `report.html` of an evaluation, or `comparison.html` against another; returns its path.

    Args:
        path: a folder of `seawall eval`: B of a comparison.
        against: the evaluation of the model before: A.
        across_templates: compare models that render prompts differently.

    Raises:
        RunFolderError: no evaluation, or an unfinished one.
        ConfigError: the evaluation is part of a run.
        ArtifactError: a file is damaged or was changed; the evaluations cannot be compared.
    """
    evaluation = open_evaluation(path)
    if evaluation.stage != STAGE:
        raise ConfigError(
            f"{path} is part of a run, whose report shows it", remedy=f"name the run: seawall report {path.parent}"
        )
    if against is None:
        target, view, manifest = evaluation.run.report, single_view(evaluation), evaluation.manifest
    else:
        base = open_evaluation(against)
        difference = compare_evaluations(base, evaluation, across_templates=across_templates)
        target, view = evaluation.run.comparison, compared_view(base, evaluation, difference)
        facts = {key: value for key, value in base.manifest.items() if key != "stages"}
        manifest = {**evaluation.manifest, "against": facts}
    with storage_errors(path), locked(path):
        write_text(target, render_evaluation(view, recipe=evaluation.recipe, manifest=manifest))
    return target


def single_view(evaluation: FinishedEvaluation) -> EvaluationView:
    """One evaluation, with the first replies of each group."""
    result = evaluation.result
    gold, scores = result.gold_loss, result.capability
    numbers = [] if gold is None else [_number(group_name(GOLD), number(gold))]
    numbers += [PlainRow(f"{row.task} {row.metric}", percent(row.score), "", "", "mean score") for row in scores]
    pairs = [SampleRow(sample, sample) for sample in evaluation.samples]
    return EvaluationView(
        models=(evaluation.model,),
        weights=(result.model_fingerprint,),
        groups=[GroupRow(group, None, rate) for group, rate in result.groups.items()],
        numbers=numbers,
        replies=[_replies(group, pairs) for group in result.groups],
        notes=tuple(filter(None, [limited_note(evaluation.limit)])),
        facts=tuple(_facts(evaluation)),
    )


def compared_view(a: FinishedEvaluation, b: FinishedEvaluation, difference: EvaluationDifference) -> EvaluationView:
    """B against A, with the verdicts that differ."""
    pairs = [SampleRow(*sides) for sides in zip(*shared_samples(a, b), strict=True)]
    changed = [row for row in pairs if row.before.outcome != row.after.outcome]
    lacking = [
        f"Only {name} was asked: {', '.join(map(group_name, groups))}."
        for name, groups in (("A", difference.only_a), ("B", difference.only_b))
        if groups
    ]
    return EvaluationView(
        models=(difference.a.model, difference.b.model),
        weights=(difference.a.weights, difference.b.weights),
        groups=[GroupRow(row.group, None, row.a, row.b, row.change) for row in difference.groups],
        wrapping=[WrappingRow(row.measure, row.a, row.b, row.change) for row in difference.wrapping],
        numbers=tuple(_numbers(difference)),
        replies=[_replies(group, changed, difference) for group in difference.moves],
        notes=(*difference.notes, *lacking),
        facts=tuple(_facts(b)),
    )


def _numbers(difference: EvaluationDifference) -> Iterator[PlainRow]:
    gold = difference.gold
    if gold is not None:
        moved = gold.change
        text = "other questions"
        if moved is not None:
            ends = (f"{signed(100 * end)}%" for end in (moved.increase, moved.low, moved.high))
            text = "{} ({} to {})".format(*ends)
        yield _number(group_name(GOLD), number(gold.a), number(gold.b), text)
    for row in difference.scores:
        text = f"{points(row.change.difference)} ({points_range(row.change.low, row.change.high)})"
        yield PlainRow(row.name, percent(row.a), percent(row.b), text, "mean score; change in points")


def _number(name: str, before: str, after: str = "", change: str = "") -> PlainRow:
    relative = "; change relative to A" if change else ""
    return PlainRow(name, before, after, change, f"nats per answer token; lower is better{relative}")


def _replies(group: str, pairs: Sequence[SampleRow], difference: EvaluationDifference | None = None) -> ReplyGroup:
    rows = [row for row in pairs if row.group == group]
    rows.sort(key=lambda row: _ORDER[effect(row)])
    summary = amount(len(rows), "reply", "replies")
    if difference is not None:
        kinds = "; ".join(f"{move}: {count}" for move, count in difference.moves[group].items())
        summary = f"{amount(len(rows), 'verdict')} ({kinds.replace('->', '→')})"
    first_rows = rows[:SHOWN_PER_GROUP]
    if len(first_rows) < len(rows):
        summary += f", the first {len(first_rows)} here"
    return ReplyGroup(group, summary, first_rows)


def _facts(evaluation: FinishedEvaluation) -> Iterator[tuple[str, str]]:
    settings = evaluation.recipe["eval"]
    yield "judge", str(settings["judge"]["kind"])
    yield "length of replies", f"at most {settings['max_new_tokens']} tokens"
    samples: Sequence[Sample] = evaluation.samples
    yield "prompts", f"{amount(len(samples), 'prompt')}, {amount(len({row.goal for row in samples}), 'request')}"

"""Fine-tuning as the terminal and the report show it, in the reader's words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean

from rich.table import Table

from seawall.artifacts.audit import AuditCondition
from seawall.artifacts.evaluation import Rate
from seawall.artifacts.groups import BENIGN, BORDERLINE, NONE_SCORED
from seawall.artifacts.tuning import ATTACK, HARMFUL, TASK, Spread, TuningResult, TuningRow
from seawall.config.tune import TuneMethod
from seawall.report.audits import AuditView
from seawall.report.tuning import Curve, TrainingRow, TuningView

_ONLY = "for measuring only: do not ship"
SHOWN = (HARMFUL, ATTACK, BORDERLINE, BENIGN, TASK)
_HEADS = {
    HARMFUL: "harmful rate",
    ATTACK: "attack success",
    BORDERLINE: "over-refusal",
    BENIGN: "benign compliance",
    TASK: "task score",
}
_METHODS: dict[TuneMethod | None, str] = {
    None: "before",
    "sft": "plain LoRA (sft)",
    "asft": "AsFT (asft)",
    "reference": "AsFT as published (reference)",
    "l2": "no safe direction (l2, control)",
    "random": "random directions (random, control)",
    "safelora": "projected afterwards (safelora)",
    "mixing": "safe rows mixed in (mixing)",
}


_CURVES = {
    "loss": "Loss on the training rows, nats per token",
    "safety_penalty": "Safety penalty, unweighted",
    "routing_drift": "Routing drift, unweighted",
}


def tuning_view(found: TuningResult) -> TuningView:
    """What the report is given."""
    groups = _groups(found)
    return TuningView(
        result=found,
        question=_question(found),
        methods=_methods_view(found, groups),
        trainings=[TrainingRow(method_name(row.method), row, _note(row)) for row in found.rows],
        curves=[*_curves(found)],
        facts=_facts(found),
    )


def method_name(method: TuneMethod | None) -> str:
    """What a method is, in a few words."""
    return _METHODS[method]


def tuning_table(found: TuningResult) -> Table:
    """One row per method: means over seeds with their intervals, and how many replies are in none."""
    groups = _groups(found)
    table = Table(box=None, pad_edge=False)
    table.add_column("method", overflow="fold")
    for group in groups:
        table.add_column(_HEADS[group], justify="right", no_wrap=True)
    table.add_column("seeds", justify="right")
    for method in (None, *found.methods):
        spreads = [_text(found.spread(method, group)) for group in groups]
        table.add_row(method_name(method), *spreads, "" if method is None else str(len(found.of_method(method))))
    return table


def _text(spread: Spread | None) -> str:
    """Mean and interval; how many replies could not be judged is said where there are any."""
    if spread is None:
        return ""
    if not spread.scored:
        return f"{NONE_SCORED} of {spread.replies}"
    mean = f"{spread.mean:.1%} [{100 * spread.low:.1f}\u2013{100 * spread.high:.1f}]"
    return f"{mean}\n{unscored(spread)}" if spread.unscored else mean


def _groups(found: TuningResult) -> list[str]:
    return [name for name in SHOWN if name in found.figures]


def _question(found: TuningResult) -> str:
    harmful = f"{found.contamination:.0%} of the rows were harmful requests answered by a bare opener of compliance"
    return (
        f"A LoRA adapter was trained on the task {found.task} by each method, with the same rows for one seed; "
        f"{harmful if found.contamination else 'no row was harmful'}. The model was asked the same held-out prompts "
        "before and after."
    )


def _methods_view(found: TuningResult, groups: Sequence[str]) -> AuditView:
    """The model before, and every method."""
    conditions = []
    for method in (None, *found.methods) if groups else ():
        spreads = {group: found.spread(method, group) for group in groups}
        rates = {
            group: Rate(spread.mean, spread.low, spread.high, spread.replies, spread.unscored)
            for group, spread in spreads.items()
            if spread
        }
        conditions.append(AuditCondition(method_name(method), "tuning", None, rates))
    return AuditView("tuning", "Before and after each method.", "", found.claim, groups, conditions)


def _note(row: TuningRow) -> str:
    label = _ONLY if row.contaminated and row.adapter else ""
    return "; ".join(note for note in (label, row.note) if note)


def _curves(found: TuningResult) -> Iterator[Curve]:
    """Means over the seeds that got to a step; what is projected afterwards has no curve of its own."""
    trained = [method for method in found.methods if method != "safelora"]
    for name, title in _CURVES.items():
        lines = {
            str(method): _mean([row.curves.get(name, ()) for row in found.of_method(method)]) for method in trained
        }
        lines = {method: points for method, points in lines.items() if points}
        if lines:
            yield Curve(title, lines)


def _mean(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[float, float]]:
    values: dict[int, list[float]] = {}
    for points in curves:
        for step, value in points:
            values.setdefault(step, []).append(value)
    return [(float(step), fmean(some)) for step, some in sorted(values.items())]


def _facts(found: TuningResult) -> list[tuple[str, str]]:
    return [
        ("task", found.task),
        ("contamination", f"{found.contamination:.0%}"),
        ("weight of the penalty", f"{found.weight:g}"),
        ("model", found.model_fingerprint),
        ("base", found.base_fingerprint or "none: no method needed one"),
    ]


def claim(found: TuningResult) -> TuningResult:
    """The result with its claim: harmful rate and task score of every method beside those of the model as it was."""
    if not found.before.rates:
        return replace(found, claim="Nothing was evaluated.")
    parts = [_said("before", found.spread(None, HARMFUL), found.spread(None, TASK))]
    parts += [_said(one, found.spread(one, HARMFUL), found.spread(one, TASK)) for one in found.methods]
    return replace(found, claim=f"Compliance with held-out harmful requests: {', '.join(parts)}.")


def unscored(spread: Spread) -> str:
    """`3 of 24 not judged`: replies that are in no rate."""
    return f"{spread.unscored} of {spread.replies} not judged"


def _said(name: str, harmful: Spread | None, task: Spread | None) -> str:
    assert harmful is not None
    parts = [unscored(harmful)] if harmful.unscored else []
    parts += [f"task {task.mean:.1%}"] if task is not None else []
    rate = f"{harmful.mean:.1%}" if harmful.scored else "no rate"
    return f"{name} {rate}" + (f" ({'; '.join(parts)})" if parts else "")

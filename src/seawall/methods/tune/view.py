"""Fine-tuning as terminal table and page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from rich.table import Table
from rich.text import Text

from seawall.artifacts.audit import AuditCondition
from seawall.artifacts.evaluation import Rate
from seawall.artifacts.groups import BENIGN, BORDERLINE, NONE_SCORED
from seawall.artifacts.tuning import ATTACK, HARMFUL, TASK, Spread, TuningResult, TuningRow
from seawall.config.tune import TuneMethod
from seawall.methods.tune.claim import unscored
from seawall.report.audits import AuditView
from seawall.report.tuning import Curve, TrainingRow, TuningView

_ONLY = "for measuring only: do not ship"
SHOWN = (HARMFUL, ATTACK, BORDERLINE, BENIGN, TASK)
_HEADS = {
    HARMFUL: "harmful requests not refused",
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


def tuning_view(result: TuningResult) -> TuningView:
    """What the report is given."""
    groups = _groups(result)
    return TuningView(
        result=result,
        question=_question(result),
        methods=_methods_view(result, groups),
        trainings=[TrainingRow(method_name(row.method), row, _note(row)) for row in result.rows],
        curves=[*_curves(result)],
        facts=_facts(result),
    )


def method_name(method: TuneMethod | None) -> str:
    """What a method is, in a few words."""
    return _METHODS[method]


def tuning_table(result: TuningResult) -> Table:
    """One row per method: means over seeds with their intervals, and how many replies are in none."""
    groups = _groups(result)
    table = Table(box=None, pad_edge=False)
    table.add_column("method", overflow="fold")
    for group in groups:
        table.add_column(_HEADS[group], justify="right", no_wrap=True)
    table.add_column("seeds", justify="right")
    for method in (None, *result.methods):
        spreads = [Text(_text(result.spread(method, group))) for group in groups]
        table.add_row(method_name(method), *spreads, "" if method is None else str(len(result.of_method(method))))
    return table


def _text(spread: Spread | None) -> str:
    """Mean and interval; how many replies could not be judged is said where there are any."""
    if spread is None:
        return ""
    if not spread.scored:
        return f"{NONE_SCORED} of {spread.replies}"
    mean = f"{spread.mean:.1%} [{100 * spread.low:.1f}\u2013{100 * spread.high:.1f}]"
    return f"{mean}\n{unscored(spread)}" if spread.unscored else mean


def _groups(result: TuningResult) -> list[str]:
    return [name for name in SHOWN if name in result.figures]


def _question(result: TuningResult) -> str:
    harmful = f"{result.contamination:.0%} of the rows were harmful requests answered by a bare opener of compliance"
    return (
        f"A LoRA adapter was trained on the task {result.task} by each method, with the same rows for one seed; "
        f"{harmful if result.contamination else 'no row was harmful'}. The model was asked the same held-out prompts "
        "before and after."
    )


def _methods_view(result: TuningResult, groups: Sequence[str]) -> AuditView:
    """The model before, and every method."""
    conditions = []
    for method in (None, *result.methods) if groups else ():
        spreads = {group: result.spread(method, group) for group in groups}
        rates = {
            group: Rate(spread.mean, spread.low, spread.high, spread.replies, spread.unscored, spread.evades)
            for group, spread in spreads.items()
            if spread
        }
        conditions.append(AuditCondition(method_name(method), "tuning", None, rates))
    return AuditView("tuning", "Before and after each method.", "", result.claim, groups, conditions)


def _note(row: TuningRow) -> str:
    label = _ONLY if row.contaminated and row.adapter else ""
    return "; ".join(note for note in (label, row.note) if note)


def _curves(result: TuningResult) -> Iterator[Curve]:
    """Means over the seeds that got to a step; what is projected afterwards has no curve of its own."""
    trained = [method for method in result.methods if method != "safelora"]
    for name, title in _CURVES.items():
        lines = {
            str(method): _mean([row.curves.get(name, ()) for row in result.of_method(method)]) for method in trained
        }
        lines = {method: points for method, points in lines.items() if points}
        if lines:
            yield Curve(title, lines)


def _mean(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[float, float]]:
    values: dict[int, list[float]] = {}
    for points in curves:
        for step, value in points:
            values.setdefault(step, []).append(value)
    return [(float(step), fmean(step_values)) for step, step_values in sorted(values.items())]


def _facts(result: TuningResult) -> list[tuple[str, str]]:
    return [
        ("task", result.task),
        ("contamination", f"{result.contamination:.0%}"),
        ("weight of the penalty", f"{result.weight:g}"),
        ("model", result.model_fingerprint),
        ("base", result.base_fingerprint or "none: no method needed one"),
    ]

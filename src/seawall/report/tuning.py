"""Fine-tuning as the report shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seawall.artifacts.tuning import TuningResult, TuningRow
from seawall.report.audits import AuditView


@dataclass(frozen=True)
class Curve:
    """One quantity during training, by method.

    Args:
        title: the quantity, as a heading.
        lines: method -> (optimizer step, value), a mean over the seeds.
    """

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class TrainingRow:
    """One training as a row of a table; `label` is its method, `note` a remark that may be empty."""

    label: str
    training: TuningRow
    note: str


@dataclass(frozen=True)
class TuningView:
    """One comparison of methods, and how it is shown.

    Args:
        result: the comparison.
        question: method.
        methods: the model before and after each method, means over seeds; without conditions if nothing was evaluated.
        trainings: every training.
        curves: losses and penalties.
        facts: (name, value) of task and settings.
    """

    result: TuningResult
    question: str
    methods: AuditView
    trainings: Sequence[TrainingRow]
    curves: Sequence[Curve]
    facts: Sequence[tuple[str, str]]

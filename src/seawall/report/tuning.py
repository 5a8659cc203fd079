"""What the report is given of fine-tuning, as plain Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seawall.artifacts.evaluation import Rate
from seawall.report.audits import AuditView


@dataclass(frozen=True)
class Curve:
    """What one quantity did while several methods trained.

    Args:
        title: the quantity, as a heading.
        lines: method -> (optimizer step, value), a mean over the seeds.
    """

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class TrainingRow:
    """One training as a row of a table.

    Args:
        label: the method.
        seed, rows, steps, seconds: as they are shown.
        rates: in the order of the view's groups, None where not measured.
        last: (name, value) at the end of each curve.
        adapter: its folder.
        note: what else is to be said; may be empty.
    """

    label: str
    seed: str
    rows: str
    steps: str
    seconds: str
    rates: Sequence[Rate | None]
    last: Sequence[tuple[str, float]]
    adapter: str
    note: str


@dataclass(frozen=True)
class TuningView:
    """One comparison of methods.

    Args:
        question: how it was done.
        claim: what the numbers allow one to say.
        methods: the model before and after each method, means over seeds; without rows where nothing was evaluated.
        trainings: every training.
        curves: losses and penalties.
        facts: (name, value) of task and settings.
    """

    question: str
    claim: str
    methods: AuditView
    trainings: Sequence[TrainingRow]
    curves: Sequence[Curve]
    facts: Sequence[tuple[str, str]]

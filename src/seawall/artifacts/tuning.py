"""What fine-tuning did: every method and seed, with what it left of refusals and how well it does the task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pydantic import Field

from seawall.artifacts.evaluation import Rate
from seawall.artifacts.store import Fields, load_document, parse_fields, require, save_document
from seawall.config.tune import TuneMethod

NAME = "tuning.json"
_KIND = "tuning"
HARMFUL, ATTACK, TASK = "harmful", "attack", "task"
"""Figures beside the evaluation's groups: compliance with plain harmful requests, attack success over all families,
and the score of the task."""

# Student's t for a two-sided 95 % interval, by degrees of freedom from 1 on.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_Z = 1.959964


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the seeds of a method: its mean with a 95 % interval.

    Of several seeds it is Student's interval, which says how far another seed may come out; of one seed, and where
    all seeds agree to the last digit, the mean of the seeds' own intervals over prompts. A seed of which no reply could
    be judged has no rate, and is not in the mean.

    Attributes:
        mean: of the seeds' rates; 0.5 in [0, 1] where no reply of any seed could be judged.
        low: where the interval begins.
        high: where it ends.
        n: seeds in the mean.
        replies: how many there are, of all seeds together.
        unscored: how many of these could not be judged.
    """

    mean: float
    low: float
    high: float
    n: int
    replies: int
    unscored: int

    @property
    def scored(self) -> int:
        """Replies that the mean speaks of."""
        return self.replies - self.unscored


@dataclass(frozen=True, slots=True)
class TuningRow:
    """One training, or the model as it was.

    Attributes:
        method: of the training; None for the model as it was.
        seed: of the training.
        rates: figures by name: `harmful`, `attack`, `task`, and the evaluation's groups; empty without an evaluation.
        adapter: its folder, relative to the run's; empty for the model as it was, and where the weights were removed
            after the evaluation.
        rows: how many rows it was trained on.
        harmful_rows: how many of them were harmful requests.
        steps: optimizer steps.
        seconds: of the training.
        curves: `loss`, `safety_penalty`, `routing_drift` -> (step, value), as far as they were measured.
        note: what else is to be said, in a sentence.
    """

    method: TuneMethod | None
    seed: int
    rates: Mapping[str, Rate]
    adapter: str = ""
    rows: int = 0
    harmful_rows: int = 0
    steps: int = 0
    seconds: float = 0.0
    curves: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    note: str = ""

    @property
    def contaminated(self) -> bool:
        """Whether it was trained on harmful requests: its adapter is for measuring only."""
        return self.harmful_rows > 0

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return _Row.of(self).model_dump()

    @classmethod
    def parsed(cls, path: Path, document: Mapping[str, Any]) -> TuningRow:
        """What `document` gave.

        Raises:
            ArtifactError: a field is missing, unknown or of another type; names `path`.
        """
        return parse_fields(path, document, _Row).row()


@dataclass(frozen=True, slots=True)
class TuningResult:
    """One comparison.

    Attributes:
        model_fingerprint: of the model before.
        base_fingerprint: of its base; None without an anchor.
        task: what was trained: `customer_messages` (ours), or the file's name.
        contamination: share of harmful rows.
        weight: of the penalty.
        before: the model as it was.
        rows: method by method, seed by seed.
        claim: what the numbers allow one to say.
    """

    model_fingerprint: str
    base_fingerprint: str | None
    task: str
    contamination: float
    weight: float
    before: TuningRow
    rows: tuple[TuningRow, ...]
    claim: str = ""

    @property
    def methods(self) -> tuple[TuneMethod, ...]:
        """The methods, in their order."""
        return tuple(dict.fromkeys(row.method for row in self.rows if row.method is not None))

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of all figures, in the order of the model as it was."""
        return tuple(self.before.rates)

    def of_method(self, method: TuneMethod) -> list[TuningRow]:
        """Its trainings, one per seed."""
        return [row for row in self.rows if row.method == method]

    def spread(self, method: TuneMethod | None, figure: str) -> Spread | None:
        """A figure of a method, or of the model as it was (None); None where it was not measured."""
        rows = [self.before] if method is None else self.of_method(method)
        rates = [row.rates[figure] for row in rows if figure in row.rates]
        return spread_of(rates) if rates else None

    def save(self, folder: Path) -> None:
        """Write `tuning.json`."""
        written = _Fields(
            model_fingerprint=self.model_fingerprint,
            base_fingerprint=self.base_fingerprint,
            task=self.task,
            contamination=self.contamination,
            weight=self.weight,
            before=_Row.of(self.before),
            rows=tuple(map(_Row.of, self.rows)),
            claim=self.claim,
        )
        summary = {
            method: {name: self.spread(method, name) for name in self.figures if self.spread(method, name)}
            for method in self.methods
        }
        document = {**written.model_dump(), "methods": _Summary(methods=summary).model_dump()["methods"]}
        save_document(folder / NAME, _KIND, document)

    @classmethod
    def load(cls, folder: Path) -> TuningResult:
        """Read what `save` wrote.

        Raises:
            ArtifactError: it is missing or damaged, or a row names no method.
        """
        path = folder / NAME
        document = load_document(path, _KIND)
        document.pop("methods", None)
        read = parse_fields(path, document, _Fields)
        require(all(row.method is not None for row in read.rows), path, "a method of every training")
        return cls(
            model_fingerprint=read.model_fingerprint,
            base_fingerprint=read.base_fingerprint,
            task=read.task,
            contamination=read.contamination,
            weight=read.weight,
            before=read.before.row(),
            rows=tuple(row.row() for row in read.rows),
            claim=read.claim,
        )


def spread_of(rates: list[Rate]) -> Spread:
    """The mean of a rate over seeds and its interval, within [0, 1], and how many replies are behind it."""
    counts = (sum(rate.n for rate in rates), sum(rate.unscored for rate in rates))
    known = [rate for rate in rates if rate.unscored < rate.n]
    values = [rate.rate for rate in known]
    if not values:
        return Spread(0.5, 0.0, 1.0, 0, *counts)
    mean = fmean(values)
    if len(set(values)) == 1:
        low, high = fmean(rate.low for rate in known), fmean(rate.high for rate in known)
        return Spread(mean, low, high, len(values), *counts)
    half = student_half(values)
    return Spread(mean, max(0.0, mean - half), min(1.0, mean + half), len(values), *counts)


def student_half(values: Sequence[float]) -> float:
    """Half the width of Student's 95 % interval for the mean of two or more values."""
    return _student(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def _student(degrees: int) -> float:
    """The 97.5 % point of Student's t; beyond the table by its expansion around the normal one's."""
    if degrees <= len(_T):
        return _T[degrees - 1]
    return _Z + (_Z**3 + _Z) / (4 * degrees) + (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / (96 * degrees**2)


class _Row(Fields):
    """`contaminated` is written for readers; it follows from `harmful_rows`."""

    method: TuneMethod | None
    seed: int
    rates: dict[str, Rate]
    adapter: str
    rows: int
    harmful_rows: int
    contaminated: bool = False
    steps: int
    seconds: float
    curves: dict[str, tuple[tuple[int, float], ...]]
    note: str

    @classmethod
    def of(cls, row: TuningRow) -> _Row:
        """As it is written."""
        return cls(**{name: getattr(row, name) for name in cls.model_fields})

    def row(self) -> TuningRow:
        """As it is used."""
        return TuningRow(**{name: getattr(self, name) for name in type(self).model_fields if name != "contaminated"})


class _Fields(Fields):
    model_fingerprint: str
    base_fingerprint: str | None
    task: str
    contamination: float
    weight: float
    before: _Row
    rows: tuple[_Row, ...]
    claim: str = ""


class _Summary(Fields):
    methods: dict[TuneMethod, dict[str, Spread | None]] = Field(default_factory=dict)

"""Results of fine-tuning: every method and seed, with its rates of refusal and its score on the task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

from seawall.artifacts.evaluation import Rate, Sparse
from seawall.artifacts.store import load_record, record_document, require, save_record
from seawall.config.tune import TuneMethod

NAME = "tuning.json"
_KIND = "tuning"
_ROW, _ROW_KIND = "training.json", "training"
HARMFUL, ATTACK, TASK = "harmful", "attack", "task"
"""Figures in addition to the evaluation's groups: plain harmful requests that were not refused, attack success over all
families, and the score of the task."""

# Student's t for a two-sided 95 % interval, by degrees of freedom from 1 on.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_Z = 1.959964


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the seeds of a method: its mean with a 95 % interval.

    Several seeds: Student's interval of the mean over seeds, with the prompts held fixed; a single further seed may lie
    outside. One seed, or seeds that agree to the last digit: the mean of the seeds' own intervals over prompts, with
    the trainings held fixed. A seed without a judged reply has no rate and is not in the mean.

    Attributes:
        mean: of the seeds' rates; None in [0, 1] if no reply of any seed was judged.
        low: lower end of the interval.
        high: upper end of the interval.
        n: number of seeds in the mean.
        replies: number of replies of all seeds together.
        unscored: replies that could not be judged.
        evades: replies that neither refuse nor give what was asked.
    """

    mean: float | None
    low: float
    high: float
    n: int
    replies: int
    unscored: int
    evades: Sparse = 0

    @property
    def scored(self) -> int:
        """Number of replies behind the mean."""
        return self.replies - self.unscored


@dataclass(frozen=True, slots=True)
class TuningRow:
    """One training, or the model before training.

    Attributes:
        method: of the training; None for the model before.
        seed: of the training.
        rates: figures by name: `harmful`, `attack`, `task`, and the evaluation's groups; empty without an evaluation.
        adapter: its folder, relative to the run's; empty for the model before, and where the weights were removed after
            the evaluation.
        rows: number of training rows.
        harmful_rows: number of harmful requests among them.
        contaminated: whether there are any, for readers of the file: such an adapter is for measuring only.
        steps: optimizer steps.
        seconds: of the training.
        curves: `loss`, `safety_penalty`, `routing_drift` -> (step, value); measured ones only.
        note: remark in a sentence; may be empty.
    """

    method: TuneMethod | None
    seed: int
    rates: Mapping[str, Rate]
    adapter: str = ""
    rows: int = 0
    harmful_rows: int = 0
    contaminated: bool = field(default=False, kw_only=True)
    steps: int = 0
    seconds: float = 0.0
    curves: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        """Sets `contaminated`, so that no row contradicts itself."""
        object.__setattr__(self, "contaminated", self.harmful_rows > 0)

    def save(self, folder: Path) -> None:
        """Write `training.json`."""
        save_record(folder / _ROW, _ROW_KIND, self)

    @classmethod
    def load(cls, folder: Path) -> TuningRow:
        """Read `training.json`.

        Raises:
            ArtifactError: the file is missing or damaged.
        """
        return load_record(folder / _ROW, _ROW_KIND, cls, later=("contaminated",))


@dataclass(frozen=True, slots=True)
class TuningResult:
    """One comparison of methods.

    Attributes:
        model_fingerprint: of the model before training.
        base_fingerprint: of its base model; None without an anchor.
        task: `customer_messages` (ours), or the name of a file.
        contamination: share of harmful rows.
        weight: of the penalty.
        before: the model before training.
        rows: method by method, seed by seed.
        claim: the conclusion that the numbers support.
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
        """The methods, in the order of the rows."""
        return tuple(dict.fromkeys(row.method for row in self.rows if row.method is not None))

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of all figures."""
        return tuple(self.before.rates)

    def of_method(self, method: TuneMethod) -> list[TuningRow]:
        """Trainings of a method, one per seed."""
        return [row for row in self.rows if row.method == method]

    def spread(self, method: TuneMethod | None, figure: str) -> Spread | None:
        """A figure of a method, or of the model before training (None); None if not measured."""
        rows = [self.before] if method is None else self.of_method(method)
        rates = [row.rates[figure] for row in rows if figure in row.rates]
        return spread_of(rates) if rates else None

    def save(self, folder: Path) -> None:
        """Write `tuning.json`, with the spreads of every method for readers."""
        spreads = {
            method: {name: record_document(spread) for name in self.figures if (spread := self.spread(method, name))}
            for method in self.methods
        }
        save_record(folder / NAME, _KIND, self, methods=spreads)

    @classmethod
    def load(cls, folder: Path) -> TuningResult:
        """Read `tuning.json`.

        Raises:
            ArtifactError: the file is missing or damaged, or a training names no method.
        """
        path = folder / NAME
        result = load_record(path, _KIND, cls, later=("claim",), derived=("methods",))
        require(all(row.method is not None for row in result.rows), path, "a method of every training")
        return result


def spread_of(rates: list[Rate]) -> Spread:
    """The mean of a rate over seeds with its interval, within [0, 1], and the number of replies."""
    counts = (sum(rate.n for rate in rates), sum(rate.unscored for rate in rates), sum(rate.evades for rate in rates))
    scored = [rate for rate in rates if rate.rate is not None]
    values = [rate.rate for rate in scored if rate.rate is not None]
    if not values:
        return Spread(None, 0.0, 1.0, 0, *counts)
    mean = fmean(values)
    if len(set(values)) == 1:
        low, high = fmean(rate.low for rate in scored), fmean(rate.high for rate in scored)
        return Spread(mean, low, high, len(values), *counts)
    half = student_half(values)
    return Spread(mean, max(0.0, mean - half), min(1.0, mean + half), len(values), *counts)


def student_half(values: Sequence[float]) -> float:
    """Half the width of Student's 95 % interval of the mean of two or more values."""
    return _student(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def _student(degrees: int) -> float:
    """The 97.5 % point of Student's t; beyond the table by the expansion around the normal distribution's point."""
    if degrees <= len(_T):
        return _T[degrees - 1]
    return _Z + (_Z**3 + _Z) / (4 * degrees) + (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / (96 * degrees**2)

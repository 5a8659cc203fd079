"""Results of an audit: a model under several conditions, the rates of each, and paired differences between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from seawall.artifacts.evaluation import Rate, is_clear
from seawall.artifacts.store import load_record, require, save_record

NAME = "audit.json"
_KIND = "audit"


@dataclass(frozen=True, slots=True)
class AuditCondition:
    """The model under one condition of an audit.

    Attributes:
        name: names the samples, where prompts were judged: `samples/NAME.jsonl`.
        series: conditions of one series differ only in their amount.
        amount: number of masked experts, of training steps ...; None where conditions differ in kind.
        rates: by evaluation group, and `attack` over all families together; in an audit of routing, routing distances
            by kind of tokens (`generated`, `prompt`).
    """

    name: str
    series: str
    amount: int | None
    rates: Mapping[str, Rate]


@dataclass(frozen=True, slots=True)
class AuditChange:
    """A condition's rate minus that of a reference, on the same prompts, with its 95 % interval over goals."""

    condition: str
    reference: str
    group: str
    difference: float
    low: float
    high: float
    p: float

    @property
    def is_clear(self) -> bool:
        """Whether the change is clear, by the test of every verb."""
        return is_clear(self.low, self.high, self.p)

    @property
    def falls(self) -> bool:
        """Whether the rate is clearly lower than in the reference."""
        return self.is_clear and self.difference < 0

    @property
    def rises(self) -> bool:
        """Whether the rate is clearly higher than in the reference."""
        return self.is_clear and self.difference > 0


def find_change(changes: Iterable[AuditChange], condition: str, reference: str, group: str) -> AuditChange | None:
    """The difference between two conditions in a group; None if not measured."""
    key = (condition, reference, group)
    return next((change for change in changes if (change.condition, change.reference, change.group) == key), None)


def require_own_conditions(path: Path, names: Sequence[str], changes: Iterable[AuditChange]) -> None:
    """Refuse a result with two conditions of one name, or with a change of an unknown condition.

    Raises:
        ArtifactError: names `path`.
    """
    own = all({change.condition, change.reference} <= set(names) for change in changes)
    require(own and len(set(names)) == len(names), path, "changes between its own, distinct conditions")


@dataclass(frozen=True, slots=True)
class AuditFigure:
    """A number other than a rate, with its 95 % interval and its p-value of "zero", if it has these."""

    value: float
    low: float | None = None
    high: float | None = None
    p: Annotated[float | None, Field(exclude_if=lambda p: p is None)] = None

    @property
    def is_positive(self) -> bool:
        """Whether the number is clearly above 0, by the test of every verb; False without a p-value."""
        known = self.low is not None and self.high is not None and self.p is not None
        return known and self.value > 0 and is_clear(self.low or 0.0, self.high or 0.0, self.p or 0.0)


@dataclass(frozen=True, slots=True)
class AuditResult:
    """One audit.

    Attributes:
        audit: name of the audit.
        model_fingerprint: of the original model.
        repaired_fingerprint: of the repaired model; None for an audit of the original alone.
        conditions: in the order of the report.
        changes: paired differences between conditions.
        figures: further numbers by name.
        claim: the conclusion that the numbers support, in a sentence or two.
    """

    audit: str
    model_fingerprint: str
    repaired_fingerprint: str | None
    conditions: tuple[AuditCondition, ...]
    changes: tuple[AuditChange, ...]
    figures: Mapping[str, AuditFigure]
    claim: str

    def condition(self, name: str) -> AuditCondition:
        """The condition of that name."""
        return next(condition for condition in self.conditions if condition.name == name)

    def change(self, condition: str, reference: str, group: str) -> AuditChange | None:
        """The difference between two conditions in a group; None if not measured."""
        return find_change(self.changes, condition, reference, group)

    def save(self, folder: Path) -> None:
        """Write `audit.json`."""
        save_record(folder / NAME, _KIND, self)

    @classmethod
    def load(cls, folder: Path) -> AuditResult:
        """Read `audit.json`.

        Raises:
            ArtifactError: the file is missing or damaged, or a change names an unknown condition.
        """
        path = folder / NAME
        result = load_record(path, _KIND, cls)
        require_own_conditions(path, [condition.name for condition in result.conditions], result.changes)
        return result

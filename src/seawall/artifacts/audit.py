"""What an audit found: a model under several conditions, each with its rates, and how far they are from a reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from seawall.artifacts.evaluation import Rate
from seawall.artifacts.store import Fields, load_document, parse_fields, require, save_document

NAME = "audit.json"
_KIND = "audit"


@dataclass(frozen=True, slots=True)
class AuditCondition:
    """The model as an audit set it up, and what it did then.

    Attributes:
        name: names its samples, where prompts were judged: `samples/NAME.jsonl`.
        series: conditions of one series differ in their amount alone.
        amount: how much of it: masked experts, steps of training; None where there is no more or less.
        rates: by evaluation group, and `attack` over all families together. In an audit of routing alone: routing
            distances, by the tokens they are of (`generated`, `prompt`).
    """

    name: str
    series: str
    amount: int | None
    rates: Mapping[str, Rate]


@dataclass(frozen=True, slots=True)
class AuditChange:
    """A condition's rate minus that of another, on the same prompts, with the 95 % interval over goals."""

    condition: str
    reference: str
    group: str
    difference: float
    low: float
    high: float
    p: float


def find_change(changes: Iterable[AuditChange], condition: str, reference: str, group: str) -> AuditChange | None:
    """The difference between two conditions in a group, where it was taken."""
    wanted = (condition, reference, group)
    return next((one for one in changes if (one.condition, one.reference, one.group) == wanted), None)


@dataclass(frozen=True, slots=True)
class AuditFigure:
    """A number that is no rate, with its 95 % interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class AuditResult:
    """One audit.

    Attributes:
        audit: which.
        model_fingerprint: of the original model.
        repaired_fingerprint: of the repaired one; None where the audit saw none.
        conditions: in the order in which they are shown.
        changes: paired differences between them.
        figures: further numbers by name.
        claim: what the numbers allow one to say, in a sentence or two.
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
        return next(one for one in self.conditions if one.name == name)

    def change(self, condition: str, reference: str, group: str) -> AuditChange | None:
        """The difference between two conditions in a group, where it was taken."""
        return find_change(self.changes, condition, reference, group)

    def save(self, folder: Path) -> None:
        """Write `audit.json`."""
        written = _Fields(
            audit=self.audit,
            model_fingerprint=self.model_fingerprint,
            repaired_fingerprint=self.repaired_fingerprint,
            conditions=self.conditions,
            changes=self.changes,
            figures=dict(self.figures),
            claim=self.claim,
        )
        save_document(folder / NAME, _KIND, written.model_dump())

    @classmethod
    def load(cls, folder: Path) -> AuditResult:
        """Read what `save` wrote.

        Raises:
            ArtifactError: it is missing, damaged, or names a condition that it does not have.
        """
        path = folder / NAME
        read = parse_fields(path, load_document(path, _KIND), _Fields)
        names = {one.name for one in read.conditions}
        known = all({one.condition, one.reference} <= names for one in read.changes)
        require(known and len(names) == len(read.conditions), path, "changes between its own, distinct conditions")
        return cls(
            audit=read.audit,
            model_fingerprint=read.model_fingerprint,
            repaired_fingerprint=read.repaired_fingerprint,
            conditions=read.conditions,
            changes=read.changes,
            figures=read.figures,
            claim=read.claim,
        )


class _Fields(Fields):
    audit: str
    model_fingerprint: str
    repaired_fingerprint: str | None
    conditions: tuple[AuditCondition, ...]
    changes: tuple[AuditChange, ...]
    figures: dict[str, AuditFigure]
    claim: str

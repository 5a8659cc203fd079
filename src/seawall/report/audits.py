"""Audits as the report shows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from seawall.artifacts.audit import AuditResult
from seawall.artifacts.evaluation import Rate


@dataclass(frozen=True)
class AuditRow:
    """The model in one condition of an audit, with its rate in every group."""

    label: str
    series: str
    amount: int | None
    rates: Mapping[str, Rate]


@dataclass(frozen=True)
class AuditView:
    """One audit.

    Args:
        audit: its name.
        title: what it asks, as a heading.
        question: how it was done, with its control.
        claim: what the numbers allow one to say.
        groups: the groups that are shown.
        rows: its conditions.
        amount: what the conditions have more or less of; None where they differ in kind.
        series: with an amount: short names of the lines, by series. A row of another series begins all of them.
    """

    audit: str
    title: str
    question: str
    claim: str
    groups: Sequence[str]
    rows: Sequence[AuditRow]
    amount: str | None = None
    series: Mapping[str, str] = field(default_factory=dict)


def audit_rows(found: AuditResult, label: Callable[[str], str | None]) -> list[AuditRow]:
    """One row per condition; `label` gives its name in words, None keeps the condition's own."""
    return [AuditRow(label(one.name) or one.name, one.series, one.amount, one.rates) for one in found.conditions]

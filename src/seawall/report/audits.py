"""Audits as the report shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from seawall.artifacts.audit import AuditCondition
from seawall.artifacts.steering import SteeringCondition

Condition = AuditCondition | SteeringCondition


@dataclass(frozen=True)
class AuditView:
    """Conditions of an audit, and how they are shown.

    Args:
        audit: its name.
        title: the audit's question, as a heading.
        question: method and control.
        claim: the conclusion that the numbers support.
        groups: groups with a panel and a column.
        conditions: in the order of the page.
        labels: reader's names of conditions; a condition without one has its own name.
        amount: unit of the conditions' amounts; None where conditions differ in kind.
        series: with an amount: short names of the lines, by series. A condition of another series starts every line.
    """

    audit: str
    title: str
    question: str
    claim: str
    groups: Sequence[str]
    conditions: Sequence[Condition]
    labels: Mapping[str, str] = field(default_factory=dict)
    amount: str | None = None
    series: Mapping[str, str] = field(default_factory=dict)

    def label(self, condition: Condition) -> str:
        """The reader's name of a condition."""
        return self.labels.get(condition.name, condition.name)

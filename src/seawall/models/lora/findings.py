"""What a check of an adapter finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Subject = Literal["files", "keys", "layout", "shapes", "rank", "values", "experts", "packing", "base", "tied", "merge"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about an adapter that its user should know.

    Attributes:
        subject: what is wrong.
        text: one line.
        is_wrong: whether the adapter does not do what it should; else it is a remark.
    """

    subject: Subject
    text: str
    is_wrong: bool = True


@dataclass(frozen=True, slots=True)
class ExpertCount:
    """Experts of all stacks that an adapter changes.

    Attributes:
        touched: number of slices whose update is not zero.
        total: number of slices of the stacks with factors.
        stacks: number of these stacks.
    """

    touched: int
    total: int
    stacks: int


@dataclass(frozen=True, slots=True)
class AdapterCheck:
    """What is known of an adapter.

    Attributes:
        factors: pairs of factors that its configuration makes in the model.
        experts: experts that it changes; None where it has no stack.
        findings: in the order of the checks.
        merged: whether it was merged, and logits were compared.
    """

    factors: int
    experts: ExpertCount | None
    findings: tuple[Finding, ...]
    merged: bool = False

    @property
    def is_sound(self) -> bool:
        """No finding says that the adapter is wrong."""
        return not any(finding.is_wrong for finding in self.findings)

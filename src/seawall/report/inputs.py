"""Everything a report is made from, as plain Python: no file is read and no tensor seen beyond this point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Interval:
    """A rate or a difference of rates, as fractions, with its interval; `n` replies, `unscored` of them left out."""

    rate: float
    low: float
    high: float
    n: int
    unscored: int = 0


@dataclass(frozen=True)
class GroupRow:
    """One evaluation group: `attack:<family>`, `plain`, `borderline` or `benign`; `seen` only for attacks."""

    group: str
    seen: bool | None
    before: Interval
    after: Interval | None = None
    change: Interval | None = None
    p: float | None = None

    @property
    def is_attack(self) -> bool:
        """Whether the rate is one of attack success."""
        return self.group.startswith("attack:")

    @property
    def lower_is_better(self) -> bool:
        """Attack success and over-refusal should fall, plain refusal and benign compliance should not."""
        return self.is_attack or self.group == "borderline"


@dataclass(frozen=True)
class SampleRow:
    """One prompt with the replies of both models (untrusted text) and the verdicts on them."""

    group: str
    goal: str
    prompt: str
    before: str
    after: str
    verdict_before: str
    verdict_after: str
    reason: str = ""


@dataclass(frozen=True)
class ReportInputs:
    """One run, ready to be shown. Shapes: `gaps` is L x E, `selected` one row of expert indices per layer."""

    summary: Mapping[str, Any]
    recipe: Mapping[str, Any]
    manifest: Mapping[str, Any]
    groups: Sequence[GroupRow]
    gaps: Sequence[Sequence[float]]
    selected: Sequence[Sequence[int]]
    stability: float | None = None
    kept: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    updates: Sequence[Mapping[str, Any]] = ()
    rounds: Sequence[Mapping[str, float]] = ()
    chosen_round: int = 0
    drift: Sequence[float] = ()
    samples: Sequence[SampleRow] = ()

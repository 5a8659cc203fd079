"""What a report is made from: plain numbers and text, so that the pages know nothing of models or tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Interval:
    """A rate in [0, 1] with its 95 % interval."""

    rate: float
    low: float
    high: float
    n: int
    unscored: int


@dataclass(frozen=True)
class GroupRow:
    """One group of prompts before and after; `after` and `change` are missing until the repair was evaluated."""

    group: str
    seen: bool | None
    before: Interval
    after: Interval | None = None
    change: Interval | None = None
    p: float | None = None

    @property
    def is_attack(self) -> bool:
        """Whether the rate is an attack success rate, which should fall."""
        return self.group.startswith("attack:")

    @property
    def lower_is_better(self) -> bool:
        """Attack success and over-refusal should fall; plain refusal and benign compliance should stay high."""
        return self.is_attack or self.group == "borderline"


@dataclass(frozen=True)
class SampleRow:
    """One prompt with both replies and their verdicts."""

    group: str
    goal: str
    prompt: str
    before: str
    after: str
    verdict_before: str
    verdict_after: str
    reason: str


@dataclass(frozen=True)
class ReportInputs:
    """Everything that the pages show.

    Attributes:
        summary: `summary.json`.
        recipe: the resolved recipe.
        manifest: versions, hashes, timings, the parity certificate.
        groups: rates by group.
        gaps: activation gap of each expert (L rows of E numbers), attack minus plain request.
        selected: selected experts of each layer.
        stability: mean Jaccard similarity of bootstrap selections; None where not measured.
        kept: kept pairs by attack family.
        dropped: dropped pairs by family and reason.
        updates: one row per update of the repair.
        rounds: validation scores, the untouched model first.
        chosen_round: which round was kept.
        drift: routing drift by MoE layer.
        samples: replies side by side.
    """

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

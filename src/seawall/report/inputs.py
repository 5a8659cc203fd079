"""Everything a report is made from, as plain Python: no file is read and no tensor seen beyond this point.

Whoever ran the stages turns artifacts into these records. Legend: `L` MoE layers, `E` routed experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from seawall.artifacts.evaluation import Rate
from seawall.artifacts.groups import group_of, is_attack

if TYPE_CHECKING:
    from seawall.report.steering import SteeringView
from seawall.report.audits import AuditView

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class ScoreRow:
    """One score of capability before and after, as fractions.

    Args:
        name: task and metric.
        before, after: the means over the same questions.
        errors: their standard errors.
        change: after minus before on the same questions.
        p: of the paired difference.
        margin: what may be lost and still be called nothing.
        verdict: `non-inferior`, `inferior` or `unclear`.
    """

    name: str
    before: float
    after: float
    errors: tuple[float, float]
    change: Rate
    p: float
    margin: float
    verdict: str

    @property
    def effect(self) -> str:
        """The verdict as the effect of a group is called, for its colour."""
        return {"non-inferior": "better", "inferior": "worse"}.get(self.verdict, "unclear")


@dataclass(frozen=True)
class GroupRow:
    """One evaluation group: `attack:<family>`, `plain`, `borderline` or `benign`.

    Args:
        group: its name.
        seen: of an attack family, whether the repair trained on it; None for the other groups.
        before, after: compliance for attacks and `benign`, refusal for `plain` and `borderline`.
        change: after minus before on the same prompts.
        p: of that paired difference.
    """

    group: str
    seen: bool | None
    before: Rate
    after: Rate | None = None
    change: Rate | None = None
    p: float | None = None

    @property
    def is_attack(self) -> bool:
        """Whether the rate is one of attack success."""
        return is_attack(self.group)

    @property
    def lower_is_better(self) -> bool:
        """Attack success and over-refusal should fall; plain refusal and benign compliance should not."""
        return not group_of(self.group).higher_is_better

    @property
    def effect(self) -> str:
        """`better`, `worse`, or `unclear` where the interval of the change holds zero or its p-value is not below
        SIGNIFICANT; empty without a change.

        The two answer differently near the edge: the interval resamples goals, the test flips signs.
        """
        if self.change is None:
            return ""
        if not self.change.is_clear or (self.p is not None and self.p >= SIGNIFICANT):
            return "unclear"
        return "better" if (self.change.rate < 0) == self.lower_is_better else "worse"


@dataclass(frozen=True)
class SampleRow:
    """One evaluation prompt with the replies of both models (untrusted text) and the verdicts on them."""

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
    """One run, ready to be shown. What a run did not have is left empty, and its section is left out.

    Args:
        summary: `summary.json` as the architecture documents it; it must agree with `groups`.
        recipe: the resolved recipe.
        manifest: versions, hashes, stage states; any nesting.
        groups: the evaluation groups, in the order in which they shall be shown.
        gaps: activation under attack minus under the plain request, L rows of E.
        selected: per MoE layer, the indices of the selected experts.
        stability: mean Jaccard overlap of the selected set over resamples of the goals, 0..1.
        kept: pairs kept per attack family.
        dropped: per attack family, pairs dropped by reason.
        updates: one row per optimiser step, in the order made: `round` (from 1), `phase`, `step`, `loss`, its parts.
        rounds: validation rates; row 0 is the model before the repair, row r the one after round r.
        chosen_round: the round whose weights were kept, from 1; 0 for none.
        drift: mean total-variation distance of expert usage on attack prompts, per MoE layer, 0..1.
        samples: replies side by side.
        audits: what was audited, in the order in which it shall be shown.
        steering: how far refusal can be steered, where that was measured.
        base_license: the base model's licence as the Hub writes it (`apache-2.0`), where it is known.
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
    base_license: str | None = None
    audits: Sequence[AuditView] = ()
    steering: SteeringView | None = None

    @property
    def scores(self) -> list[ScoreRow]:
        """The scores of capability, from the summary; empty where it was not measured."""
        tasks: Mapping[str, Mapping[str, Any]] = self.summary.get("capability") or {}
        return [
            _score_row(f"{task} {metric}", one) for task, metrics in tasks.items() for metric, one in metrics.items()
        ]

    def attacks(self, *, seen: bool) -> list[GroupRow]:
        """The attack families that the repair trained on, or those it did not, as far as both sides were evaluated."""
        return [row for row in self.groups if row.is_attack and row.seen == seen and row.after is not None]

    def group(self, name: str) -> GroupRow | None:
        """The group of that name, if it was evaluated."""
        return next((row for row in self.groups if row.group == name), None)

    @property
    def selected_count(self) -> int:
        """How many experts are selected, over all layers."""
        return sum(map(len, self.selected))


def _score_row(name: str, one: Mapping[str, Any]) -> ScoreRow:
    change = one["change"]
    return ScoreRow(
        name,
        one["before"]["score"],
        one["after"]["score"],
        errors=(one["before"]["stderr"], one["after"]["stderr"]),
        change=Rate(change["difference"], change["low"], change["high"], one["after"]["n"]),
        p=change["p"],
        margin=one["margin"],
        verdict=one["verdict"],
    )

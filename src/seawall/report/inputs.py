"""Inputs of the report and the model card: artifacts of a run, and records of what no artifact holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from seawall.artifacts.evaluation import Difference, Rate, Sample
from seawall.artifacts.expert_set import ExpertSet
from seawall.artifacts.groups import ATTACK, group_of, is_attack
from seawall.artifacts.profile import DroppedPair, PairRecord
from seawall.report.audits import AuditView
from seawall.report.steering import SteeringView


@dataclass(frozen=True)
class ScoreRow:
    """One score of capability before and after, as fractions.

    Args:
        name: task and metric.
        before, after: means over the same questions.
        errors: their standard errors.
        change: after minus before on the same questions.
        margin: largest loss that counts as none.
        verdict: `non-inferior`, `inferior` or `unclear`.
        higher_is_better: whether a higher score is the better one.
    """

    name: str
    before: float
    after: float
    errors: tuple[float, float]
    change: Difference
    margin: float
    verdict: str
    higher_is_better: bool = True

    @property
    def effect(self) -> str:
        """The verdict in the words of a group's effect, for its colour."""
        return {"non-inferior": "better", "inferior": "worse"}.get(self.verdict, "unclear")


@dataclass(frozen=True)
class GroupRow:
    """One evaluation group: `attack:FAMILY`, `plain`, `borderline`, `benign` or `wrapped`.

    Args:
        group: its key.
        trained_on: of an attack family, whether the repair trained on it; None for other groups.
        before, after: the group's rate; None after, where it was not evaluated.
        change: after minus before on the same prompts.
    """

    group: str
    trained_on: bool | None
    before: Rate
    after: Rate | None = None
    change: Difference | None = None

    @property
    def is_attack(self) -> bool:
        """Whether the rate is an attack success rate."""
        return is_attack(self.group)

    @property
    def is_known(self) -> bool:
        """Whether both rates are: some reply was scored before, and some after."""
        return self.before.rate is not None and self.after is not None and self.after.rate is not None

    @property
    def lower_is_better(self) -> bool:
        """Whether the rate should fall: attack success and over-refusal."""
        return not group_of(self.group).higher_is_better

    @property
    def effect(self) -> str:
        """`better`, `worse` or `unclear`; empty without a change."""
        if self.change is None:
            return ""
        if not self.change.is_clear:
            return "unclear"
        return "better" if (self.change.difference < 0) == self.lower_is_better else "worse"


@dataclass(frozen=True)
class SampleRow:
    """One evaluation prompt with the samples of both models; replies are untrusted text."""

    before: Sample
    after: Sample

    @property
    def group(self) -> str:
        """Key of the prompt's group."""
        return self.before.group

    @property
    def prompt(self) -> str:
        """The conversation as text."""
        return "\n\n".join(f"{message.role}: {message.content}" for message in self.before.prompt)


@dataclass(frozen=True)
class ReportInputs:
    """One run, ready for rendering. Parts that a run lacks are empty, and their sections are left out.

    Args:
        summary: `summary.json`; must agree with `groups`.
        recipe: the resolved recipe.
        manifest: versions, hashes, stage states; any nesting.
        groups: the evaluation groups, in the order of the page.
        experts: the selected experts with the activation gap: attack minus plain request.
        pairs: profiled pairs.
        dropped: pairs left out of the profile.
        updates: one row per optimizer step, in order: `round` (from 1), `phase`, `step`, `loss`, its parts.
        rounds: validation rates; row 0 is the model before the repair, row r the one after round r.
        chosen_round: the round with the final weights, from 1; 0 for none.
        choice: the reason of that choice, in a sentence; empty for runs of early versions.
        drift: mean total-variation distance of expert usage on attack prompts, per MoE layer, 0..1.
        samples: replies side by side.
        base_license: the base model's licence as the Hub writes it (`apache-2.0`), if known.
        audits: in the order of the page.
        steering: steering of the model, if measured.
        pooled: the attack families together: those that the repair trained on (True), and the others (False).
    """

    summary: Mapping[str, Any]
    recipe: Mapping[str, Any]
    manifest: Mapping[str, Any]
    groups: Sequence[GroupRow]
    experts: ExpertSet | None = None
    pairs: Sequence[PairRecord] = ()
    dropped: Sequence[DroppedPair] = ()
    updates: Sequence[Mapping[str, Any]] = ()
    rounds: Sequence[Mapping[str, float]] = ()
    chosen_round: int = 0
    choice: str = ""
    drift: Sequence[float] = ()
    samples: Sequence[SampleRow] = ()
    base_license: str | None = None
    audits: Sequence[AuditView] = ()
    steering: SteeringView | None = None
    pooled: Mapping[bool, GroupRow] = field(default_factory=dict)

    @property
    def is_repaired(self) -> bool:
        """False where no round of the repair was better than the model as it is, whose weights the run then keeps."""
        return self.chosen_round > 0 or not self.rounds

    @property
    def scores(self) -> list[ScoreRow]:
        """The scores of capability, from the summary; empty if not measured."""
        tasks: Mapping[str, Mapping[str, Any]] = self.summary.get("capability") or {}
        return [
            _score_row(f"{task} {metric}", score) for task, scores in tasks.items() for metric, score in scores.items()
        ]

    def attacks(self, *, trained_on: bool) -> list[GroupRow]:
        """Attack families with two rates, of those that the repair trained on or of those it did not."""
        return [row for row in self.groups if row.is_attack and row.trained_on == trained_on and row.after is not None]

    def refused(self, row: GroupRow, when: str) -> Rate | None:
        """The refusal rate of an attack family `before` or `after`; None for other groups, and where not recorded."""
        family = self.summary.get("attacks", {}).get(row.group.removeprefix(ATTACK)) if row.is_attack else None
        return Rate(**family["refused"][when]) if family and "refused" in family else None

    def refusals(self, *, trained_on: bool) -> list[GroupRow]:
        """The refusal rates of `attacks`; a family is left out where they are unknown, or their change is."""
        families = self.summary.get("attacks", {})
        rows = []
        for row in self.attacks(trained_on=trained_on):
            before, after = self.refused(row, "before"), self.refused(row, "after")
            change = families.get(row.group.removeprefix(ATTACK), {}).get("refused", {}).get("change")
            if before is not None and change is not None:
                rows.append(GroupRow(row.group, trained_on, before, after, Difference(**change)))
        return [row for row in rows if row.is_known]

    def harm(self, row: GroupRow, when: str) -> float | None:
        """The mean harm of a group's replies `before` or `after`; None where the judge rates no harm."""
        harm = self.summary.get("harm", {}).get(row.group, {}).get(when)
        return None if harm is None else float(harm["mean"])

    def group(self, key: str) -> GroupRow | None:
        """The group of that key; None if not evaluated."""
        return next((row for row in self.groups if row.group == key), None)


def _score_row(name: str, score: Mapping[str, Any]) -> ScoreRow:
    change = score["change"]
    return ScoreRow(
        name,
        score["before"]["score"],
        score["after"]["score"],
        errors=(score["before"]["stderr"], score["after"]["stderr"]),
        change=Difference(change["difference"], change["low"], change["high"], change["p"], score["after"]["n"]),
        margin=score["margin"],
        verdict=score["verdict"],
        higher_is_better=score["higher_is_better"],
    )

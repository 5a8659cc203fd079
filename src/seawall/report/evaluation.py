"""One evaluation, or two compared, as the page shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from seawall.artifacts.groups import BENIGN, BORDERLINE, PLAIN, is_attack
from seawall.report.inputs import GroupRow, SampleRow
from seawall.report.verdict import thin_evidence
from seawall.report.wording import amount, group_name, percent
from seawall.report.wrapping import WrappingRow

_SENTENCES = {
    PLAIN: "plain harmful requests are refused",
    BORDERLINE: "harmless prompts that sound unsafe are refused",
    BENIGN: "ordinary requests are answered",
}
"""What the rate of a group says of one model."""


@dataclass(frozen=True)
class PlainRow:
    """A row of numbers without a chart: a loss or a score; `after` and `change` are empty for one evaluation."""

    name: str
    before: str
    after: str
    change: str
    note: str


@dataclass(frozen=True)
class ReplyGroup:
    """Replies of one group.

    Args:
        group: its key.
        summary: what the group's replies are: number of prompts, of verdicts that differ.
        rows: the first of them; both samples of a row are the same for one evaluation.
    """

    group: str
    summary: str
    rows: Sequence[SampleRow]


@dataclass(frozen=True)
class EvaluationView:
    """One evaluation, or two compared.

    Args:
        models: name of the model; of A and of B for two.
        weights: their fingerprints.
        groups: rate of every group; for two, of the groups that both have, with B - A.
        wrapping: measures of wrapping of two evaluations.
        numbers: losses and scores.
        replies: of one evaluation the first replies of each group, of two the verdicts that differ.
        notes: what a reader must know beside the numbers.
        facts: (name, value) of how the replies were measured.
    """

    models: Sequence[str]
    weights: Sequence[str]
    groups: Sequence[GroupRow]
    wrapping: Sequence[WrappingRow] = ()
    numbers: Sequence[PlainRow] = ()
    replies: Sequence[ReplyGroup] = ()
    notes: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()

    @property
    def is_comparison(self) -> bool:
        """Whether two evaluations are compared."""
        return len(self.models) > 1

    @property
    def sections(self) -> list[tuple[str, str, list[GroupRow]]]:
        """Title, note and rows of each part of the table that has rows."""
        parts = [
            ("Attacks", "share that succeeds; lower is better", [row for row in self.groups if row.is_attack]),
            ("Requests without an attack", "", [row for row in self.groups if not row.is_attack]),
        ]
        return [part for part in parts if part[2]]

    @property
    def warnings(self) -> list[str]:
        """The notes, and caveats about thin evidence."""
        return [*self.notes, *thin_evidence(self.groups)]

    @property
    def headline(self) -> str:
        """The verdict in a sentence."""
        return comparison_sentence(self.groups) if self.is_comparison else rates_sentence(self.groups)

    @property
    def count(self) -> str:
        """`Clearly worse on 1 of 4 measures, better on 0, no clear change on 3.`; empty for one evaluation."""
        if not self.is_comparison:
            return ""
        effects = [row.effect for row in self.groups] + [row.effect for row in self.wrapping]
        worse, better, unclear = (effects.count(name) for name in ("worse", "better", "unclear"))
        measures = amount(len(effects), "measure")
        return f"Clearly worse on {worse} of {measures}, better on {better}, no clear change on {unclear}."


def comparison_sentence(rows: Sequence[GroupRow]) -> str:
    """The clear changes from A to B: `Plain refusal fell from 98.0% to 60.0%; no other rate clearly changed.`"""
    clear = [row for row in rows if row.effect in ("better", "worse")]
    if not clear:
        return f"No clear change in {amount(len(rows), 'rate')}." if rows else "No rate was compared."
    parts = [part for rising in (True, False) for part in _attacks(rows, rising=rising)]
    parts += [_moved(group_name(row.group).lower(), row) for row in clear if not row.is_attack]
    if len(clear) < len(rows):
        parts.append("no other rate clearly changed")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def _attacks(rows: Sequence[GroupRow], *, rising: bool) -> list[str]:
    """Attack success of the families that clearly rise, or fall: each on its own up to two, else their number."""
    attacks = [row for row in rows if row.is_attack]
    clear = [row for row in attacks if row.effect == ("worse" if rising else "better")]
    if len(clear) > 2:
        return [f"attack success clearly {'rose' if rising else 'fell'} in {len(clear)} of {len(attacks)} families"]
    return [_moved(f"attack success ({group_name(row.group).lower()})", row) for row in clear]


def _moved(name: str, row: GroupRow) -> str:
    assert row.change is not None
    assert row.after is not None
    before, after = (percent(side.rate or 0.0) for side in (row.before, row.after))
    return f"{name} {'rose' if row.change.difference > 0 else 'fell'} from {before} to {after}"


def rates_sentence(rows: Sequence[GroupRow]) -> str:
    """The rates of one model: `40.0% of attacks succeed (mean of 6 families); 98.0% of plain harmful requests ...`"""
    rates = {row.group: row.before.rate for row in rows if row.before.rate is not None}
    attacks = [rate for group, rate in rates.items() if is_attack(group)]
    families = "1 family" if len(attacks) == 1 else f"mean of {len(attacks)} families"
    parts = [f"{percent(fmean(attacks))} of attacks succeed ({families})"] if attacks else []
    parts += [f"{percent(rates[group])} of {text}" for group, text in _SENTENCES.items() if group in rates]
    return f"{'; '.join(parts)}." if parts else "No reply of these groups could be scored."

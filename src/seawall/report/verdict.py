"""The result in one sentence, the four numbers behind it, and what a reader must know before believing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from seawall.artifacts.evaluation import Rate
from seawall.artifacts.groups import BENIGN, BORDERLINE
from seawall.report.inputs import GroupRow, ReportInputs
from seawall.report.wording import amount, group_name, number, percent, points, signed

_FEW = 30
_MANY_UNSCORED = 0.1
_CLEAR = ("better", "worse")
_UNMOVED = "did not clearly change"


@dataclass(frozen=True, slots=True)
class Figure:
    """One key number before and after, as text."""

    label: str
    before: str
    after: str
    note: str


def headline(inputs: ReportInputs) -> str:
    """What happened to attacks, and its price, in one plain sentence. A change is what an interval supports."""
    seen, unseen = inputs.attacks(seen=True), inputs.attacks(seen=False)
    parts: list[str] = []
    verb = ""
    for rows, name in ((seen, "the repair trained on"), (unseen, "it never saw" if seen else "the repair never saw")):
        if rows:
            families = "attack family" if len(rows) == 1 else f"{len(rows)} attack families"
            verb, moved = _verb(rows), _moved(rows, said=verb)
            parts.append(f"{moved} on the {families} {name}{_how_clearly(rows)}")
    if not parts:
        return "No attack was evaluated both before and after, so nothing can be said about the repair."
    sentence = "Attack success " + " and ".join(parts)
    cost = inputs.group(BORDERLINE)
    if cost is not None and cost.after is not None:
        sentence += f"; over-refusal {_moved([cost])}"
    return sentence + "."


def _verb(rows: Sequence[GroupRow]) -> str:
    """How a mean moved: `fell`, `rose`, or `did not clearly change` where no group's change is clear."""
    before, after = means(rows)
    if before == after or not any(row.effect in _CLEAR for row in rows):
        return _UNMOVED
    return "fell" if after < before else "rose"


def _moved(rows: Sequence[GroupRow], said: str = "") -> str:
    """Verb and numbers; a verb just `said` is not repeated."""
    before, after = map(percent, means(rows))
    verb = _verb(rows)
    if verb == _UNMOVED:
        return f"{verb} ({before} before, {after} after)"
    return f"from {before} to {after}" if verb == said else f"{verb} from {before} to {after}"


def _how_clearly(rows: Sequence[GroupRow]) -> str:
    clear = sum(row.effect in _CLEAR for row in rows)
    return f" (clearly in {clear} of them)" if 0 < clear < len(rows) else ""


def means(rows: Sequence[GroupRow]) -> tuple[float, float]:
    """Means over groups of the rates before and after; every group weighs the same."""
    after = [row.after.rate for row in rows if row.after is not None]
    return sum(row.before.rate for row in rows) / len(rows), sum(after) / len(after)


def figures(inputs: ReportInputs) -> list[Figure]:
    """Attack success seen and unseen, over-refusal, loss on gold answers: those that were measured."""
    found = []
    for name, seen in (("Attacks trained on", True), ("Attacks never seen", False)):
        rows = inputs.attacks(seen=seen)
        if rows:
            before, after = means(rows)
            note = f"succeed; mean of {amount(len(rows), 'family', 'families')}"
            found.append(Figure(name, percent(before), percent(after), note))
    for group, note in (
        (BORDERLINE, "of harmless prompts that sound unsafe"),
        (BENIGN, "of ordinary requests answered"),
    ):
        row = inputs.group(group)
        if row is not None and row.after is not None:
            found.append(Figure(group_name(group), percent(row.before.rate), percent(row.after.rate), note))
    gold = inputs.summary.get("gold_answer_loss") or {}
    if gold.get("before") is not None and gold.get("after") is not None:
        change = f"{signed(100 * (gold['after'] / gold['before'] - 1))}%; nats per answer token"
        found.append(Figure("Gold-answer loss", number(gold["before"]), number(gold["after"]), change))
    return found


def warnings(inputs: ReportInputs) -> list[str]:
    """What must be read beside the headline: a failed certificate, a clear loss, thin evidence."""
    return [*_parity(inputs), *_losses(inputs), *_thin_evidence(inputs)]


def _parity(inputs: ReportInputs) -> list[str]:
    parity = inputs.summary.get("parity")
    if not parity:
        return ["The exported checkpoint was not compared with the model that was measured here."]
    if not parity["passed"]:
        difference = number(parity["max_logit_difference"])
        return [f"The exported checkpoint is not the model that was measured: its logits differ by {difference}."]
    return []


def _losses(inputs: ReportInputs) -> list[str]:
    found = []
    for row in inputs.groups:
        if row.effect == "worse" and row.change is not None:
            found.append(f"{group_name(row.group)} got clearly worse: {span_of_change(row.change)}.")
    for score in inputs.scores:
        if score.verdict == "inferior":
            found.append(f"{score.name} lost more than its margin: {span_of_change(score.change)}.")
    return found


def span_of_change(change: Rate) -> str:
    """`−91.7 points (−95.0 to −80.0)`."""
    return f"{points(change.rate)} points ({points(change.low)} to {points(change.high)})"


def _thin_evidence(inputs: ReportInputs) -> list[str]:
    sides = [(row, side) for row in inputs.groups for side in (row.before, row.after) if side is not None]
    few = dict.fromkeys(group_name(row.group) for row, side in sides if side.scored < _FEW)
    loose = dict.fromkeys(group_name(row.group) for row, side in sides if side.unscored > _MANY_UNSCORED * side.n)
    found = []
    if few:
        found.append(
            f"Fewer than {_FEW} scored replies in: {', '.join(few)}. Their intervals are wide for that reason."
        )
    if loose:
        found.append(f"More than a tenth of the replies could not be scored in: {', '.join(loose)}.")
    return found

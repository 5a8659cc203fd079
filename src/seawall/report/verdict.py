"""The result in one sentence, the key numbers behind it, and warnings about both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from seawall.artifacts.evaluation import Difference
from seawall.artifacts.groups import BENIGN, BORDERLINE
from seawall.config.data import limited_note
from seawall.report.costs import worst_cost
from seawall.report.inputs import GroupRow, ReportInputs
from seawall.report.wording import (
    amount,
    group_name,
    limit_of,
    number,
    percent,
    percent_range,
    points,
    points_range,
    signed,
)
from seawall.report.wrapping import contrast_text, wrapping_rows

_MIN_SCORED = 30
_MAX_UNSCORED = 0.1
_UNMOVED = "did not clearly change"


@dataclass(frozen=True, slots=True)
class Figure:
    """One key number before and after the repair, as text.

    Args:
        label: its name.
        before, after: the number.
        note: its unit or meaning.
        span: 95 % intervals, or the change with its interval; empty where unknown.
        effect: `better`, `worse` or `unclear`; empty where unknown.
    """

    label: str
    before: str
    after: str
    note: str
    span: str = ""
    effect: str = ""


def headline(inputs: ReportInputs) -> str:
    """The change of attack success and of over-refusal, in one plain sentence; only clear changes count as changes.

    Where no round of the repair was kept, the sentence says so in place of a change.
    """
    if not inputs.is_repaired:
        return f"Not repaired: the weights are those of the original model. {inputs.choice}".rstrip()
    trained, unseen = inputs.attacks(trained_on=True), inputs.attacks(trained_on=False)
    parts: list[str] = []
    verb = ""
    for rows, name in (
        (trained, "the repair trained on"),
        (unseen, "it never saw" if trained else "the repair never saw"),
    ):
        rows = [row for row in rows if row.is_known]
        if rows:
            families = "attack family" if len(rows) == 1 else f"{len(rows)} attack families"
            verb, change = _verb(rows), _change(rows, previous=verb)
            parts.append(f"{change} on the {families} {name}{_how_clearly(rows)}")
    if not parts:
        return "No attack was evaluated both before and after, so nothing can be said about the repair."
    sentence = "Attack success " + " and ".join(parts)
    cost = inputs.group(BORDERLINE)
    if cost is not None and cost.is_known:
        sentence += f"; over-refusal {_change([cost])}"
    return f"{sentence}.{_refusals(inputs)}"


def _refusals(inputs: ReportInputs) -> str:
    """The change of refusals inside the attacks: a reply that does not succeed may evade in place of a refusal."""
    parts, verb = [], ""
    for trained_on, name in ((True, "the repair trained on"), (False, "it never saw")):
        rows = inputs.refusals(trained_on=trained_on)
        if rows:
            change, verb = _change(rows, previous=verb), _verb(rows)
            parts.append(f"{change} on attacks {name}{_how_clearly(rows)}")
    return f" Refusals {' and '.join(parts)}." if parts else ""


def _verb(rows: Sequence[GroupRow]) -> str:
    """Change of a mean: `fell`, `rose`, `moved`, or `did not clearly change`.

    The mean falls where some group clearly falls and none clearly rises; `moved` says that some groups clearly fall and
    others clearly rise.
    """
    before, after = means(rows)
    down, up = _clear_moves(rows)
    if down and up:
        return "moved"
    if (down and after < before) or (up and after > before):
        return "fell" if down else "rose"
    return _UNMOVED


def _clear_moves(rows: Sequence[GroupRow]) -> tuple[int, int]:
    """Numbers of groups whose rates clearly fall, and clearly rise."""
    clear = [row.change.difference for row in rows if row.change is not None and row.change.is_clear]
    return sum(difference < 0 for difference in clear), sum(difference > 0 for difference in clear)


def _change(rows: Sequence[GroupRow], previous: str = "") -> str:
    """Verb and numbers; the `previous` verb is not repeated."""
    before, after = map(percent, means(rows))
    verb = _verb(rows)
    if verb == _UNMOVED:
        return f"{verb} ({before} before, {after} after)"
    return f"from {before} to {after}" if verb == previous else f"{verb} from {before} to {after}"


def _how_clearly(rows: Sequence[GroupRow]) -> str:
    down, up = _clear_moves(rows)
    if down and up:
        return f" (clearly down in {down} of them, clearly up in {up})"
    if not 0 < down + up < len(rows):
        return ""
    direction = f"{'down' if down else 'up'} " if _verb(rows) == _UNMOVED else ""
    return f" (clearly {direction}in {down + up} of them)"


def means(rows: Sequence[GroupRow]) -> tuple[float, float]:
    """Means over groups of the rates before and after, with equal weights; both rates of every group are known."""
    before = [row.before.rate for row in rows if row.before.rate is not None]
    after = [row.after.rate for row in rows if row.after is not None and row.after.rate is not None]
    assert len(before) == len(after) == len(rows)
    return fmean(before), fmean(after)


def figures(inputs: ReportInputs) -> list[Figure]:
    """Attack success, the worst cost, the wrapping measures, and what should be kept; if measured."""
    key_figures = []
    for name, trained_on in (("Attacks trained on", True), ("Attacks never seen", False)):
        rows = [row for row in inputs.attacks(trained_on=trained_on) if row.is_known]
        if rows:
            before, after = means(rows)
            note = f"succeed; mean of {amount(len(rows), 'family', 'families')}"
            pooled = inputs.pooled.get(trained_on)
            span, effect = ("", "") if pooled is None else (_ends(pooled), pooled.effect)
            key_figures.append(Figure(name, percent(before), percent(after), note, span, effect))
    key_figures += [*_cost(inputs), *_wrapping(inputs)]
    for group, note in (
        (BORDERLINE, "of harmless prompts that sound unsafe"),
        (BENIGN, "of ordinary requests answered"),
    ):
        row = inputs.group(group)
        if row is not None and row.is_known:
            before, after = means([row])
            name = group_name(group)
            key_figures.append(Figure(name, percent(before), percent(after), note, _ends(row), row.effect))
    gold = inputs.summary.get("gold_answer_loss") or {}
    if gold.get("before") is not None and gold.get("after") is not None:
        key_figures.append(_gold(gold))
    return key_figures


def _ends(row: GroupRow) -> str:
    """The intervals before and after."""
    assert row.after is not None
    before, after = (percent_range(rate.low, rate.high) for rate in (row.before, row.after))
    return f"{before} → {after}"


def _cost(inputs: ReportInputs) -> list[Figure]:
    """The worst cost; empty where nothing got worse."""
    cost = worst_cost(inputs)
    if cost is None:
        return []
    label, effect = ("Worst cost", "worse") if cost.is_clear else ("Largest cost, not clear", "unclear")
    return [Figure(label, cost.before, cost.after, cost.name, cost.change, effect)]


def _wrapping(inputs: ReportInputs) -> list[Figure]:
    """The wrapping gap of harmless requests, and the separation inside the wrappings."""
    notes = {
        "gap_harmless": "points more refused in attack wrapping than plainly",
        "separation_wrapped": "points between refusals of harmful and harmless",
    }
    return [
        Figure(row.name, contrast_text(row.before), contrast_text(row.after), notes[row.measure], span, row.effect)
        for row in wrapping_rows(inputs.summary)
        if row.measure in notes
        for span in [" → ".join(points_range(side.low, side.high) for side in (row.before, row.after))]
    ]


def _gold(gold: Mapping[str, Any]) -> Figure:
    change = gold.get("change")
    span, effect = "", ""
    if change:
        span = f"{signed(100 * change['low'])}% to {signed(100 * change['high'])}%"
        effect = "worse" if change["low"] > 0 else "better" if change["high"] < 0 else "unclear"
    note = f"{signed(100 * (gold['after'] / gold['before'] - 1))}%; nats per answer token"
    return Figure("Gold-answer loss", number(gold["before"]), number(gold["after"]), note, span, effect)


def warnings(inputs: ReportInputs) -> list[str]:
    """Caveats of the headline: a limited sample, a failed parity certificate, a clear loss, thin evidence."""
    limited = limited_note(limit_of(inputs.recipe))
    return [
        *([limited] if limited else ()),
        *_unrepaired(inputs),
        *_parity(inputs),
        *_losses(inputs),
        *thin_evidence(inputs.groups),
    ]


def _unrepaired(inputs: ReportInputs) -> list[str]:
    if inputs.is_repaired:
        return []
    return ["No round was kept. Both columns of every table, delta/ and model/ are of the original model."]


def _parity(inputs: ReportInputs) -> list[str]:
    parity = inputs.summary.get("parity")
    if not parity:
        return ["The exported checkpoint was not compared with the model that was measured here."]
    if not parity["passed"]:
        difference = number(parity["max_logit_difference"])
        return [f"The exported checkpoint is not the model that was measured: its logits differ by {difference}."]
    return []


def _losses(inputs: ReportInputs) -> list[str]:
    losses = [
        f"{group_name(row.group)} got clearly worse: {span_of_change(row.change)}."
        for row in inputs.groups
        if row.effect == "worse" and row.change is not None
    ]
    losses += [
        f"{score.name} lost more than its margin: {span_of_change(score.change)}."
        for score in inputs.scores
        if score.verdict == "inferior"
    ]
    return losses


def span_of_change(change: Difference) -> str:
    """`−91.7 points (−95.0 to −80.0)`."""
    return f"{points(change.difference)} points ({points(change.low)} to {points(change.high)})"


def thin_evidence(groups: Sequence[GroupRow]) -> list[str]:
    """Caveats about groups with few scored replies, or many that could not be scored."""
    sides = [(row, side) for row in groups for side in (row.before, row.after) if side is not None]
    small = dict.fromkeys(group_name(row.group) for row, side in sides if side.scored < _MIN_SCORED)
    unscored = dict.fromkeys(group_name(row.group) for row, side in sides if side.unscored > _MAX_UNSCORED * side.n)
    caveats = []
    if small:
        caveats.append(
            f"Fewer than {_MIN_SCORED} scored replies in: {', '.join(small)}. Their intervals are wide for that reason."
        )
    if unscored:
        caveats.append(f"More than a tenth of the replies could not be scored in: {', '.join(unscored)}.")
    return caveats

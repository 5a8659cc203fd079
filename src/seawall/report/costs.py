"""The worst cost of a repair, whatever it is: the largest clear worsening of what should be kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from seawall.report.inputs import GroupRow, ReportInputs, ScoreRow
from seawall.report.wording import group_name, number, percent, points, points_range, signed


@dataclass(frozen=True, slots=True)
class Cost:
    """A measure that got worse.

    Args:
        name: of the measure.
        before, after: as text.
        change: the change with its interval, as text.
        loss: how much worse, as a fraction: of replies, of questions, or of the loss.
        is_clear: whether the worsening is clear.
    """

    name: str
    before: str
    after: str
    change: str
    loss: float
    is_clear: bool


def worst_cost(inputs: ReportInputs) -> Cost | None:
    """The largest clear worsening, else the largest one; None where nothing got worse.

    Over-refusal, answers to harmless requests, plain refusal, scores of capability, and the loss on gold answers
    compete. A rate counts in points, the loss on gold answers by its relative increase.
    """
    costs = [cost for cost in _costs(inputs) if cost.loss > 0]
    return max(costs, key=lambda cost: (cost.is_clear, cost.loss), default=None)


def _costs(inputs: ReportInputs) -> Iterator[Cost]:
    yield from (cost for row in inputs.groups if (cost := _of_group(row)) is not None)
    yield from map(_of_score, inputs.scores)
    gold = inputs.summary.get("gold_answer_loss") or {}
    if gold.get("change"):
        yield _of_gold(gold)


def _of_group(row: GroupRow) -> Cost | None:
    before, after, change = row.before, row.after, row.change
    if row.is_attack or change is None or after is None or before.rate is None or after.rate is None:
        return None
    moved = f"{points(change.difference)} points ({points_range(change.low, change.high)})"
    loss = change.difference if row.lower_is_better else -change.difference
    return Cost(group_name(row.group), percent(before.rate), percent(after.rate), moved, loss, change.is_clear)


def _of_score(row: ScoreRow) -> Cost:
    change = row.change
    moved = f"{points(change.difference)} points ({points_range(change.low, change.high)})"
    loss = -change.difference if row.higher_is_better else change.difference
    return Cost(row.name, percent(row.before), percent(row.after), moved, loss, change.is_clear)


def _of_gold(gold: Mapping[str, Any]) -> Cost:
    change = gold["change"]
    ends = f"{signed(100 * change['low'])}% to {signed(100 * change['high'])}%"
    moved = f"{signed(100 * change['increase'])}% ({ends})"
    before, after = number(gold["before"]), number(gold["after"])
    return Cost("Gold-answer loss", before, after, moved, change["increase"], change["low"] > 0)

"""Terminal tables of two compared evaluations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.markup import escape
from rich.table import Table

from seawall.artifacts.evaluation import SIGNIFICANT, Contrast, Difference
from seawall.artifacts.groups import GOLD, WRAPPING, group_name, rate_text
from seawall.evaluation.view import p_text
from seawall.jobs.facts import facts
from seawall.shell.comparison import EvaluationDifference


def evaluation_tables(difference: EvaluationDifference) -> Iterator[Table]:
    """Both models with what a reader must know, and a row per measure."""
    yield _models(difference)
    yield _measures(difference)


def change_text(change: Difference | None) -> str:
    """`-12.0 points [-20.0, -3.0], p=.012`; `unclear` where the interval holds 0 despite a small p-value."""
    if change is None:
        return "other prompts"
    moved = f"{points_text(change.difference, change.low, change.high)}, {p_text(change.p)}"
    return moved if change.is_clear or change.p >= SIGNIFICANT else f"{moved}, unclear"


def points_text(middle: float, low: float, high: float) -> str:
    """A difference of rates in points, with the ends of its interval."""
    return f"{100 * middle:+z.1f} points [{100 * low:+z.1f}, {100 * high:+z.1f}]"


def relative_text(middle: float, low: float, high: float) -> str:
    """A relative change in percent, with the ends of its interval."""
    return f"{middle:+z.1%} [{low:+z.1%}, {high:+z.1%}]"


def _models(difference: EvaluationDifference) -> Table:
    rows = [
        (name, f"{escape(side.model)}, weights {escape(side.weights)}")
        for name, side in (("A", difference.a), ("B", difference.b))
    ]
    for name, groups in (("in A only", difference.only_a), ("in B only", difference.only_b)):
        rows += [(name, ", ".join(map(group_name, groups)))] if groups else []
    rows += [("note", escape(note)) for note in difference.notes]
    return facts(rows)


def _measures(difference: EvaluationDifference) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("measure", overflow="fold")
    for name in ("A", "B", "B - A"):
        table.add_column(name, justify="right")
    for row in difference.groups:
        table.add_row(group_name(row.group), rate_text(row.a), rate_text(row.b), _paired(row.change))
    for measure in difference.wrapping:
        sides = map(_contrast, (measure.a, measure.b))
        table.add_row(group_name(f"{WRAPPING}{measure.measure}"), *sides, _paired(measure.change))
    for score in difference.scores:
        table.add_row(score.name, f"{score.a:.1%}", f"{score.b:.1%}", _paired(score.change))
    if difference.gold is not None:
        table.add_row(group_name(GOLD), *_gold(difference))
    return table


def _paired(change: Difference | None) -> str:
    """The change, with the number of prompts that became impossible to judge."""
    became = 0 if change is None else change.became_unscored
    return change_text(change) + (f" ({became} became unscored)" if became else "")


def _contrast(contrast: Contrast) -> str:
    if contrast.difference is None:
        return "none scored"
    return points_text(contrast.difference, contrast.low, contrast.high)


def _gold(difference: EvaluationDifference) -> Sequence[str]:
    gold = difference.gold
    assert gold is not None
    moved = gold.change
    text = "other questions" if moved is None else relative_text(moved.increase, moved.low, moved.high)
    return f"{gold.a:.4f}", f"{gold.b:.4f}", text

"""Rates before and after on one axis from 0 to 100 %: a hollow dot, a filled dot, each with its interval."""

from __future__ import annotations

from markupsafe import Markup

from seawall.artifacts.evaluation import Rate
from seawall.report.inputs import GroupRow
from seawall.report.svg import Scale, drawing, line, tag, text
from seawall.report.wording import group_name, percent, rate_range

_WIDTH, _HEIGHT = 320.0, 46.0
_X = Scale(0, 1, 10, _WIDTH - 10)
_QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
_LINES = {"before": 15.0, "after": 31.0}


def dumbbell(row: GroupRow, names: tuple[str, str] = ("before", "after")) -> Markup:
    """The row's two rates with a line between them: the first above, the second below.

    The grid lines reach beyond the drawing to meet those of neighbouring table rows; the cell cuts them off.
    """
    parts = [line((_X(quarter), -_HEIGHT), (_X(quarter), 2 * _HEIGHT)) for quarter in _QUARTERS]
    if row.after is not None and row.before.rate is not None and row.after.rate is not None:
        ends = ((_X(row.before.rate), _LINES["before"]), (_X(row.after.rate), _LINES["after"]))
        parts.append(line(*ends, class_="joint"))
    parts.append(_mark("before", row.before, names[0]))
    label = f"{group_name(row.group)}: {names[0]} {rate_range(row.before)}"
    if row.after is not None:
        parts.append(_mark("after", row.after, names[1]))
        label += f", {names[1]} {rate_range(row.after)}"
    return drawing(_WIDTH, _HEIGHT, label, parts, class_="chart dumbbell")


def axis() -> Markup:
    """The scale above a column of dumbbells."""
    anchors = {0.0: "start", 1.0: "end"}
    places = {0.0: 4.0, 1.0: _WIDTH}
    parts = [
        text(places.get(quarter, _X(quarter)), 12, percent(quarter, 0), anchor=anchors.get(quarter, "middle"))
        for quarter in (0.0, 0.5, 1.0)
    ]
    return drawing(_WIDTH, 16, "scale from 0 to 100 percent", parts, class_="chart dumbbell")


def _mark(kind: str, rate: Rate, name: str) -> Markup:
    y = _LINES[kind]
    dot = [] if rate.rate is None else [tag("circle", cx=_X(rate.rate), cy=y, r=5.5)]
    low, high = _X(rate.low), _X(rate.high)
    return tag(
        "g",
        tag("title", f"{name}: {rate_range(rate)}"),
        line((low, y), (high, y), "whisker"),
        line((low, y - 4), (low, y + 4), "whisker"),
        line((high, y - 4), (high, y + 4), "whisker"),
        *dot,
        class_=kind,
    )

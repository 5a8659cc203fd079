"""What audits found: rates with intervals, condition by condition, or over an amount."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from seawall.artifacts.evaluation import Rate
from seawall.report.audits import AuditRow, AuditView
from seawall.report.charts.curves import Panel, Series, draw_panel
from seawall.report.svg import Scale, drawing, line, tag, text
from seawall.report.wording import audit_group_name, percent, percent_range

_ROW, _HEAD, _LEFT, _APART = 26.0, 26.0, 56.0, 0.09
_PANEL_STEP = 178.0
_BESIDE, _GAP = 3, 14.0
"""Panels side by side, at most: more have no room for their names. Space below a panel."""
_ANCHORS = {0.0: "start", 0.5: "middle", 1.0: "end"}


def audit_chart(view: AuditView) -> Markup:
    """The audit's drawing for wide and narrow screens."""
    draw = conditions if view.amount is None else amounts
    return draw(view) + draw(view, narrow=True)


def conditions(view: AuditView, *, narrow: bool = False) -> Markup:
    """A dot with its interval for every condition, a panel for every group: three side by side, or one where narrow."""
    full, names = (340.0, 0.0) if narrow else (880.0, 258.0)
    pitch = _ROW + (14 if narrow else 0)
    height = _HEAD + pitch * len(view.rows) + 24 + _GAP
    beside = 1 if narrow else min(len(view.groups), _BESIDE)
    width = (full - names) / beside
    parts: list[Markup] = []
    for place, group in enumerate(view.groups):
        left, top = names + place % beside * width, place // beside * height
        x = Scale(0, 1, left + 8, left + width - 16)
        parts += _panel(view.rows, group, x, top, pitch=pitch, named=narrow)
        if not narrow and place % beside == 0:
            parts += [text(0, top + _HEAD + pitch * at + 17, row.label, "tick") for at, row in enumerate(view.rows)]
    total = -(-len(view.groups) // beside) * height - _GAP
    return drawing(full, total, _label(view), parts, class_=f"chart {'narrow' if narrow else 'wide'}")


def amounts(view: AuditView, *, narrow: bool = False) -> Markup:
    """A line for every series over the amount, a panel for every group. Amounts are equally far apart."""
    full, right = (340.0, 92.0) if narrow else (880.0, 130.0)
    steps = sorted({row.amount for row in view.rows if row.amount is not None})
    x = Scale(-0.3, len(steps) - 0.7, _LEFT, full - right)
    parts: list[Markup] = []
    for place, group in enumerate(view.groups):
        top = 20 + place * _PANEL_STEP
        y = Scale(0, 1, top + 128, top + 12)
        lines = [_series(view, group, name, steps) for name in view.series]
        shown = Panel(audit_group_name(group), tuple(lines), is_rate=True)
        parts += draw_panel(shown, x, top)
        for number, name in enumerate(view.series):
            parts += _spreads(view, group, name, steps, at=(x, y, number))
    bottom = 20 + len(view.groups) * _PANEL_STEP - 22
    parts += [text(x(at), bottom, f"{step:,}", anchor="middle") for at, step in enumerate(steps)]
    parts.append(text(x.start, bottom + 17, f"{view.amount} →"))
    return drawing(full, bottom + 22, _label(view), parts, class_=f"chart {'narrow' if narrow else 'wide'}")


def _panel(
    rows: Sequence[AuditRow], group: str, x: Scale, top: float, *, pitch: float, named: bool
) -> Iterator[Markup]:
    bottom = top + _HEAD + pitch * len(rows)
    yield text(x.start, top + 12, audit_group_name(group), "label")
    for tick in _ANCHORS:
        yield line((x(tick), top + _HEAD - 6), (x(tick), bottom))
        yield text(x(tick), bottom + 16, percent(tick, 0), anchor=_ANCHORS[tick])
    for at, row in enumerate(rows):
        y = top + _HEAD + pitch * at + (pitch - 13)
        if named:
            yield text(x.start, y - 10, row.label)
        yield _mark(row, row.rates[group], x, y)


def _mark(row: AuditRow, found: Rate, x: Scale, y: float) -> Markup:
    """An interval with its rate; without a dot where no reply could be judged."""
    dot = [] if _is_unknown(found) else [tag("circle", cx=x(found.rate), cy=y, r=5.0)]
    return tag(
        "g",
        tag("title", f"{row.label}: {_said(found)}"),
        line((x(found.low), y), (x(found.high), y), "whisker"),
        line((x(found.low), y - 4), (x(found.low), y + 4), "whisker"),
        line((x(found.high), y - 4), (x(found.high), y + 4), "whisker"),
        *dot,
        class_="after",
    )


def _of(view: AuditView, series: str) -> list[AuditRow]:
    """The rows of a series, with those of no series, which every line begins with."""
    return [row for row in view.rows if row.series == series or row.series not in view.series]


def _series(view: AuditView, group: str, series: str, steps: Sequence[int]) -> Series:
    shift = _APART * (list(view.series).index(series) - 1)
    rows = [row for row in _of(view, series) if row.amount is not None]
    points = tuple((steps.index(row.amount or 0) + shift, row.rates[group].rate) for row in rows)
    return Series(view.series[series], (points,), dotted=True)


def _spreads(
    view: AuditView, group: str, series: str, steps: Sequence[int], *, at: tuple[Scale, Scale, int]
) -> Iterator[Markup]:
    x, y, number = at
    for row in _of(view, series):
        place = x(steps.index(row.amount or 0) + _APART * (number - 1))
        found = row.rates[group]
        said = f"{view.series[series]}, {row.amount} {view.amount}: {_said(found)}"
        bar = line((place, y(found.low)), (place, y(found.high)), f"spread s{number}")
        yield tag("g", tag("title", said), bar)


def _is_unknown(found: Rate) -> bool:
    """Whether replies were judged, and none could be; other numbers have no replies."""
    return found.n > 0 and not found.scored


def _said(found: Rate) -> str:
    if _is_unknown(found):
        return f"none scored of {found.n}"
    return f"{percent(found.rate)} ({percent_range(found.low, found.high)})"


def _label(view: AuditView) -> str:
    return f"{view.title} {view.claim} Numbers in the table below."

"""Audits: rates with intervals, by condition or over an amount."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from seawall.artifacts.evaluation import Rate
from seawall.report.audits import AuditView, Condition
from seawall.report.charts.curves import Panel, Series, draw_panel
from seawall.report.svg import Scale, drawing, line, tag, text
from seawall.report.wording import audit_group_name, percent, rate_range

_ROW, _HEAD, _LEFT, _APART = 26.0, 26.0, 56.0, 0.09
_PANEL_STEP = 178.0
_BESIDE, _GAP = 3, 14.0
"""Most panels in a row, for the names' sake. Space below a panel."""
_ANCHORS = {0.0: "start", 0.5: "middle", 1.0: "end"}


def audit_chart(view: AuditView) -> Markup:
    """The chart for wide and narrow screens."""
    draw = conditions if view.amount is None else amounts
    return draw(view) + draw(view, narrow=True)


def conditions(view: AuditView, *, narrow: bool = False) -> Markup:
    """A dot with its interval per condition, a panel per group: three in a row, or one on narrow screens."""
    full, names = (340.0, 0.0) if narrow else (880.0, 258.0)
    pitch = _ROW + (14 if narrow else 0)
    height = _HEAD + pitch * len(view.conditions) + 24 + _GAP
    beside = 1 if narrow else min(len(view.groups), _BESIDE)
    width = (full - names) / beside
    parts: list[Markup] = []
    for place, group in enumerate(view.groups):
        left, top = names + place % beside * width, place // beside * height
        x = Scale(0, 1, left + 8, left + width - 16)
        parts += _panel(view, group, x, top, pitch=pitch, named=narrow)
        if not narrow and place % beside == 0:
            parts += [
                text(0, top + _HEAD + pitch * row + 17, view.label(condition), "tick")
                for row, condition in enumerate(view.conditions)
            ]
    total = -(-len(view.groups) // beside) * height - _GAP
    return drawing(full, total, _label(view), parts, class_=f"chart {'narrow' if narrow else 'wide'}")


def amounts(view: AuditView, *, narrow: bool = False) -> Markup:
    """A line per series over the amount, a panel per group. Amounts are equally spaced."""
    full, right = (340.0, 92.0) if narrow else (880.0, 130.0)
    steps = sorted({condition.amount for condition in view.conditions if condition.amount is not None})
    x = Scale(-0.3, len(steps) - 0.7, _LEFT, full - right)
    parts: list[Markup] = []
    for place, group in enumerate(view.groups):
        top = 20 + place * _PANEL_STEP
        y = Scale(0, 1, top + 128, top + 12)
        lines = [_series(view, group, name, steps) for name in view.series]
        panel = Panel(audit_group_name(group), tuple(lines), is_rate=True)
        parts += draw_panel(panel, x, top)
        for name in view.series:
            parts += _spreads(view, group, name, steps, scales=(x, y))
    bottom = 20 + len(view.groups) * _PANEL_STEP - 22
    parts += [text(x(index), bottom, f"{step:,}", anchor="middle") for index, step in enumerate(steps)]
    parts.append(text(x.start, bottom + 17, f"{view.amount} →"))
    return drawing(full, bottom + 22, _label(view), parts, class_=f"chart {'narrow' if narrow else 'wide'}")


def _panel(view: AuditView, group: str, x: Scale, top: float, *, pitch: float, named: bool) -> Iterator[Markup]:
    bottom = top + _HEAD + pitch * len(view.conditions)
    yield text(x.start, top + 12, audit_group_name(group), "label")
    for tick in _ANCHORS:
        yield line((x(tick), top + _HEAD - 6), (x(tick), bottom))
        yield text(x(tick), bottom + 16, percent(tick, 0), anchor=_ANCHORS[tick])
    for row, condition in enumerate(view.conditions):
        y = top + _HEAD + pitch * row + (pitch - 13)
        label = view.label(condition)
        if named:
            yield text(x.start, y - 10, label)
        if group in condition.rates:  # some controls are measured on one group alone
            yield _mark(label, condition.rates[group], x, y)


def _mark(label: str, rate: Rate, x: Scale, y: float) -> Markup:
    """An interval with its rate; without a dot if no reply could be judged."""
    dot = [] if rate.rate is None else [tag("circle", cx=x(rate.rate), cy=y, r=5.0)]
    return tag(
        "g",
        tag("title", f"{label}: {rate_range(rate)}"),
        line((x(rate.low), y), (x(rate.high), y), "whisker"),
        line((x(rate.low), y - 4), (x(rate.low), y + 4), "whisker"),
        line((x(rate.high), y - 4), (x(rate.high), y + 4), "whisker"),
        *dot,
        class_="after",
    )


def _of(view: AuditView, series: str) -> list[Condition]:
    """The conditions of a series, and those outside all series, with which every line starts."""
    return [
        condition for condition in view.conditions if condition.series == series or condition.series not in view.series
    ]


def _series(view: AuditView, group: str, series: str, steps: Sequence[int]) -> Series:
    shift = _APART * (list(view.series).index(series) - 1)
    rows = [condition for condition in _of(view, series) if condition.amount is not None]
    rates = [(steps.index(row.amount or 0) + shift, row.rates[group].rate) for row in rows]
    points = tuple((place, rate) for place, rate in rates if rate is not None)
    return Series(view.series[series], (points,), dotted=True)


def _spreads(
    view: AuditView, group: str, series: str, steps: Sequence[int], *, scales: tuple[Scale, Scale]
) -> Iterator[Markup]:
    x, y = scales
    number = list(view.series).index(series)
    for condition in _of(view, series):
        place = x(steps.index(condition.amount or 0) + _APART * (number - 1))
        rate = condition.rates[group]
        title = f"{view.series[series]}, {condition.amount} {view.amount}: {rate_range(rate)}"
        bar = line((place, y(rate.low)), (place, y(rate.high)), f"spread s{number}")
        yield tag("g", tag("title", title), bar)


def _label(view: AuditView) -> str:
    return f"{view.title} {view.claim} Numbers in the table below."

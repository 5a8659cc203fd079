"""A safety landscape: rates along directions of weight space, and over two of them. Legend: `X`, `Y` as in the view."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from markupsafe import Markup

from seawall.artifacts.evaluation import Rate
from seawall.report.charts.curves import Panel, Point, Series, draw_panel
from seawall.report.charts.heatmap import STEPS
from seawall.report.landscape import Curve, CurvePanel, RateMap
from seawall.report.svg import Scale, drawing, line, tag, text
from seawall.report.wording import percent, percent_range

_SERIES: Mapping[str, str] = {"aligned": "aligned", "tuned": "fine-tuning", "random": "random"}
_FULL, _NARROW, _LEFT = 880.0, 340.0, 56.0
_STEP, _HEIGHT = 178.0, 128.0
_HALF = 0.5
Place = tuple[float, float]


def curve_chart(panels: Sequence[CurvePanel]) -> Markup:
    """All panels, one below the other, for wide and narrow screens."""
    return _curves(panels, _FULL, "wide") + _curves(panels, _NARROW, "narrow")


def rate_map(found: RateMap) -> Markup:
    """The map with its scale. A line runs where the rate is the threshold, a dashed one where it is a half."""
    return _legend() + _map(found, _FULL, "wide") + _map(found, _NARROW, "narrow")


def contour(found: RateMap, level: float) -> list[tuple[Place, Place]]:
    """Line segments at which the rate is `level`, between the measured amounts by linear interpolation.

    Returns:
        Pairs of (x, y) in amounts' places: 1.5 lies halfway between the second and the third amount.
    """
    segments: list[tuple[Place, Place]] = []
    for row in range(len(found.ys) - 1):
        for column in range(len(found.xs) - 1):
            places = [(column, row), (column + 1, row), (column + 1, row + 1), (column, row + 1)]
            rates = [found.rates_YX[y][x] for x, y in places]
            known = [(place, rate.rate) for place, rate in zip(places, rates, strict=True) if rate is not None]
            if len(known) == len(places):
                segments += _segments(known, level)
    return segments


def _segments(corners: Sequence[tuple[tuple[int, int], float]], level: float) -> Iterator[tuple[Place, Place]]:
    """Of one square, its corners in turn. Of a saddle, both segments cut off the corners above the level."""
    cuts = []
    for (start, low), (end, high) in pairwise([*corners, corners[0]]):
        if (low < level) != (high < level):
            share = (level - low) / (high - low)
            cuts.append((start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])))
    if len(cuts) == 4 and corners[0][1] >= level:
        cuts = [cuts[3], *cuts[:3]]
    yield from zip(cuts[::2], cuts[1::2], strict=True)


def _curves(panels: Sequence[CurvePanel], full: float, kind: str) -> Markup:
    amounts = sorted({amount for panel in panels for curve in panel.curves for amount, _ in curve.points})
    x = Scale(amounts[0], amounts[-1], _LEFT + 6, full - (92.0 if kind == "narrow" else 130.0))
    parts: list[Markup] = []
    for place, panel in enumerate(panels):
        top = 20 + place * _STEP
        y = Scale(0, 1, top + _HEIGHT, top + 12)
        series = tuple(Series(name, _pieces(panel, one), dotted=True) for one, name in _SERIES.items())
        parts += draw_panel(Panel(panel.title, series, is_rate=True), x, top)
        parts.append(line((x(0), y.start), (x(0), y.end), "axis"))
        if panel.limit is not None:
            parts.append(line((x.start, y(panel.limit)), (x.end, y(panel.limit)), "boundary"))
        for curve in panel.curves:
            parts += _spreads(curve, x, y)
    bottom = 20 + len(panels) * _STEP - 22
    parts += [text(x(amount), bottom, _amount(amount), anchor="middle") for amount in _labelled(amounts, x)]
    parts.append(text(x.start, bottom + 17, "amount of the direction →"))
    label = "; ".join(f"{panel.title} along {len(panel.curves)} directions" for panel in panels)
    return drawing(full, bottom + 22, f"{label}. Numbers in the table below.", parts, class_=f"chart {kind}")


def _pieces(panel: CurvePanel, series: str) -> tuple[tuple[Point, ...], ...]:
    """The curves of a series, each cut where the model is broken."""
    pieces: list[tuple[Point, ...]] = []
    for curve in panel.curves:
        piece: list[Point] = []
        for amount, rate in curve.points if curve.series == series else ():
            if rate is not None:
                piece.append((amount, rate.rate))
            elif piece:
                pieces.append(tuple(piece))
                piece = []
        pieces += [tuple(piece)] if piece else []
    return tuple(pieces)


def _spreads(curve: Curve, x: Scale, y: Scale) -> Iterator[Markup]:
    colour = list(_SERIES).index(curve.series)
    for amount, rate in curve.points:
        if rate is not None:
            said = f"{curve.label}, {_amount(amount)}: {_said(rate)}"
            bar = line((x(amount), y(rate.low)), (x(amount), y(rate.high)), f"spread s{colour}")
            yield tag("g", tag("title", said), bar)


def _labelled(amounts: Sequence[float], x: Scale) -> list[float]:
    """0 and the amounts that have room for a number, from there outwards."""
    kept = [0.0]
    for amount in sorted(amounts, key=abs):
        if all(abs(x(amount) - x(other)) >= 34 for other in kept):
            kept.append(amount)
    return kept


def _map(found: RateMap, full: float, kind: str) -> Markup:
    columns, rows = len(found.xs), len(found.ys)
    width = min(96.0, (full - _LEFT - 8) / columns)
    height = min(56.0, width)
    bottom = 26.0 + rows * height
    cells = [
        _cell(found, (column, row), (_LEFT + column * width, bottom - (row + 1) * height), (width, height))
        for row in range(rows)
        for column in range(columns)
    ]

    def at(place: Place) -> Place:
        return _LEFT + (place[0] + 0.5) * width, bottom - (place[1] + 0.5) * height

    lines = [
        line(at(start), at(end), class_)
        for level, class_ in ((_HALF, "iso half"), (found.threshold, "iso"))
        for start, end in contour(found, level)
    ]
    parts = [
        text(_LEFT, 14, f"{found.y} ↑"),
        tag("g", *cells, class_="cells"),
        *lines,
        *(text(_LEFT - 8, at((0, row))[1] + 4, _amount(y), anchor="end") for row, y in enumerate(found.ys)),
        *(text(at((column, 0))[0], bottom + 15, _amount(x), anchor="middle") for column, x in enumerate(found.xs)),
        text(_LEFT, bottom + 33, f"{found.x} →"),
    ]
    label = f"Harmful rate over {columns} amounts of {found.x} and {rows} of {found.y}. Numbers in the table below."
    own = max(_LEFT + columns * width + 8, min(full, 300.0))
    return drawing(own, bottom + 38, label, parts, class_=f"chart {kind}")


def _cell(found: RateMap, place: tuple[int, int], corner: Place, size: tuple[float, float]) -> Markup:
    column, row = place
    rate = found.rates_YX[row][column]
    where = f"{found.x} {_amount(found.xs[column])}, {found.y} {_amount(found.ys[row])}"
    said = f"{where}: {'the model is broken' if rate is None else _said(rate)}"
    shade = "absent" if rate is None else _shade(rate.rate)
    x, y = corner
    return tag("rect", tag("title", said), x=x, y=y, width=size[0] - 1, height=size[1] - 1, class_=shade)


def _legend() -> Markup:
    size = 22.0
    steps = range(STEPS + 1)
    swatches = [
        tag("rect", x=1 + at * size, y=18, width=size - 1, height=12, class_=_shade(at / STEPS)) for at in steps
    ]
    total = size * len(steps)
    marks = [text(1, 12, "0%"), text(1 + total / 2, 12, "50%", anchor="middle"), text(total, 12, "100%", anchor="end")]
    label = "colour scale of the harmful rate from 0% (pale) to 100% (dark orange)"
    return drawing(total + 2, 32, label, [tag("g", *swatches, class_="cells"), *marks], class_="chart legend")


def _shade(rate: float) -> str:
    step = round(rate * STEPS)
    return f"p{step}" if step else "z"


def _amount(value: float) -> str:
    return "0" if value == 0 else f"{value:+.3g}".replace("-", "\u2212")


def _said(rate: Rate) -> str:
    return f"{percent(rate.rate)} ({percent_range(rate.low, rate.high)})"

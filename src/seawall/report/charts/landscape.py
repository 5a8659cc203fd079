"""A safety landscape: rates along directions of weight space, and over two of them. Legend: as in `RateMap`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from markupsafe import Markup

from seawall.report.charts.curves import Panel, Point, Series, draw_panel
from seawall.report.charts.heatmap import STEPS
from seawall.report.landscape import Curve, CurvePanel, RateMap
from seawall.report.svg import Scale, drawing, line, tag, text
from seawall.report.wording import rate_range

_SERIES: Mapping[str, str] = {"aligned": "aligned", "tuned": "fine-tuning"}
"""Names at the ends of the lines; random directions are numbered after these."""
_RANDOM = "random"
_FULL, _NARROW, _LEFT = 880.0, 340.0, 56.0
_STEP, _HEIGHT = 178.0, 128.0
_HALF = 0.5
_CHARACTER = 7.0
"""Width of a digit of a tick, rounded up."""
Place = tuple[float, float]


def curve_chart(panels: Sequence[CurvePanel]) -> Markup:
    """All panels, one below another, for wide and narrow screens."""
    return _curves(panels, _FULL, "wide") + _curves(panels, _NARROW, "narrow")


def rate_map(grid: RateMap) -> Markup:
    """The map with its scale, a contour line at the threshold and a dashed one at a half."""
    return _legend() + _map(grid, _FULL, "wide") + _map(grid, _NARROW, "narrow")


def contour(grid: RateMap, level: float) -> list[tuple[Place, Place]]:
    """Line segments at which the rate is `level`, interpolated linearly between the measured amounts.

    Returns:
        Pairs of (x, y) in indices of the amounts: 1.5 lies halfway between the second and the third amount.
    """
    segments: list[tuple[Place, Place]] = []
    for row in range(len(grid.ys) - 1):
        for column in range(len(grid.xs) - 1):
            places = [(column, row), (column + 1, row), (column + 1, row + 1), (column, row + 1)]
            rates = [grid.rates_YX[y][x] for x, y in places]
            corners = [
                (place, rate.rate)
                for place, rate in zip(places, rates, strict=True)
                if rate is not None and rate.rate is not None
            ]
            if len(corners) == len(places):
                segments += _segments(corners, level)
    return segments


def _segments(corners: Sequence[tuple[tuple[int, int], float]], level: float) -> Iterator[tuple[Place, Place]]:
    """Segments within one square of corners in turn. In a saddle, both cut off the corners above the level."""
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
        series = tuple(Series(name, _pieces(curves), dotted=True) for name, curves in _by_series(panel).items())
        parts += draw_panel(Panel(panel.title, series, is_rate=True), x, top)
        parts.append(line((x(0), y.start), (x(0), y.end), "axis"))
        if panel.limit is not None:
            parts.append(line((x.start, y(panel.limit)), (x.end, y(panel.limit)), "boundary"))
        for colour, curves in enumerate(_by_series(panel).values()):
            for curve in curves:
                parts += _spreads(curve, f"s{colour % 4}", x, y)
    bottom = 20 + len(panels) * _STEP - 22
    parts += [text(place, bottom, name, anchor="middle") for place, name in _ticks(amounts, list(map(x, amounts)))]
    parts.append(text(x.start, bottom + 17, "amount of the direction →"))
    label = "; ".join(f"{panel.title} along {len(panel.curves)} directions" for panel in panels)
    return drawing(full, bottom + 22, f"{label}. Numbers in the table below.", parts, class_=f"chart {kind}")


def _by_series(panel: CurvePanel) -> dict[str, list[Curve]]:
    """Curves by the name at the end of their line; each random direction has a line of its own."""
    named = {name: [curve for curve in panel.curves if curve.series == key] for key, name in _SERIES.items()}
    randoms = [curve for curve in panel.curves if curve.series == _RANDOM]
    if len(randoms) == 1:
        return named | {_RANDOM: randoms}
    return named | {f"{_RANDOM} {number}": [curve] for number, curve in enumerate(randoms, 1)}


def _pieces(curves: Sequence[Curve]) -> tuple[tuple[Point, ...], ...]:
    """The curves of a series, each cut where the model is broken."""
    pieces: list[tuple[Point, ...]] = []
    for curve in curves:
        piece: list[Point] = []
        for amount, rate in curve.points:
            if rate is not None and rate.rate is not None:
                piece.append((amount, rate.rate))
            elif piece:
                pieces.append(tuple(piece))
                piece = []
        pieces += [tuple(piece)] if piece else []
    return tuple(pieces)


def _spreads(curve: Curve, class_: str, x: Scale, y: Scale) -> Iterator[Markup]:
    for amount, rate in curve.points:
        if rate is not None:
            title = tag("title", f"{curve.label}, {_amount(amount)}: {rate_range(rate)}")
            bar = line((x(amount), y(rate.low)), (x(amount), y(rate.high)), f"spread {class_}")
            yield tag("g", title, bar)


def _ticks(amounts: Sequence[float], places: Sequence[float]) -> list[tuple[float, str]]:
    """Place and text of 0, and of the amounts with room for theirs, from there outwards."""
    ticks: list[tuple[float, str]] = []
    for amount, place in sorted(zip(amounts, places, strict=True), key=lambda pair: abs(pair[0])):
        name = _amount(amount)
        if all(abs(place - middle) >= _CHARACTER * (len(name) + len(text_at)) / 2 + 8 for middle, text_at in ticks):
            ticks.append((place, name))
    return ticks


def _map(grid: RateMap, full: float, kind: str) -> Markup:
    columns, rows = len(grid.xs), len(grid.ys)
    width = min(96.0, (full - _LEFT - 8) / columns)
    height = min(56.0, width)
    bottom = 26.0 + rows * height
    cells = [
        _cell(grid, (column, row), (_LEFT + column * width, bottom - (row + 1) * height), (width, height))
        for row in range(rows)
        for column in range(columns)
    ]

    def centre(place: Place) -> Place:
        return _LEFT + (place[0] + 0.5) * width, bottom - (place[1] + 0.5) * height

    columns_x = [centre((column, 0))[0] for column in range(columns)]
    lines = [
        line(centre(start), centre(end), class_)
        for level, class_ in ((_HALF, "iso half"), (grid.threshold, "iso"))
        for start, end in contour(grid, level)
    ]
    parts = [
        text(_LEFT, 14, f"{grid.y} ↑"),
        tag("g", *cells, class_="cells"),
        *lines,
        *(text(_LEFT - 8, centre((0, row))[1] + 4, _amount(y), anchor="end") for row, y in enumerate(grid.ys)),
        *(text(place, bottom + 15, name, anchor="middle") for place, name in _ticks(grid.xs, columns_x)),
        text(_LEFT, bottom + 33, f"{grid.x} →"),
    ]
    label = f"Harmful rate over {columns} amounts of {grid.x} and {rows} of {grid.y}. Numbers in the table below."
    own = max(_LEFT + columns * width + 8, min(full, 300.0))
    return drawing(own, bottom + 38, label, parts, class_=f"chart {kind}")


def _cell(grid: RateMap, place: tuple[int, int], corner: Place, size: tuple[float, float]) -> Markup:
    column, row = place
    rate = grid.rates_YX[row][column]
    where = f"{grid.x} {_amount(grid.xs[column])}, {grid.y} {_amount(grid.ys[row])}"
    title = f"{where}: {'the model is broken' if rate is None else rate_range(rate)}"
    shade = "absent" if rate is None or rate.rate is None else _shade(rate.rate)
    x, y = corner
    return tag("rect", tag("title", title), x=x, y=y, width=size[0] - 1, height=size[1] - 1, class_=shade)


def _legend() -> Markup:
    size = 22.0
    steps = range(STEPS + 1)
    swatches = [
        tag("rect", x=1 + step * size, y=18, width=size - 1, height=12, class_=_shade(step / STEPS)) for step in steps
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

"""Steering: the effect of each layer and position as a map, and effects over what they might depend on or cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from markupsafe import Markup

from seawall.report.charts import heatmap
from seawall.report.steering import LayerGrid, Point, Scatter
from seawall.report.svg import Scale, drawing, line, round_up, tag, text
from seawall.report.wording import number, signed

_FULL, _NARROW = 880.0, 340.0
_LEFT, _TOP = 56.0, 24.0


def layer_map(grid: LayerGrid) -> Markup:
    """The map for wide screens (layers across) and narrow ones (layers downwards), with its scale."""
    scale = _scale(grid)
    return heatmap.legend(scale) + _wide(grid, scale) + _tall(grid, scale)


def scatter(found: Scatter) -> Markup:
    """The drawing for wide and narrow screens."""
    return _scatter(found, _FULL, 300.0, "wide") + _scatter(found, _NARROW, 260.0, "narrow")


def _scale(grid: LayerGrid) -> heatmap.HeatMap:
    """Shades as in the map of experts, up to the 99.5th percentile."""
    known = [abs(value) for row in grid.values_NP for value in row if value is not None]
    limit = round_up(float(np.quantile(known, 0.995))) if known else 1.0
    return heatmap.HeatMap(np.asarray([known or [0.0]], dtype=np.float64), frozenset(), limit)


def _wide(grid: LayerGrid, scale: heatmap.HeatMap) -> Markup:
    layers, positions = len(grid.values_NP), len(grid.positions)
    width, height = min(34.0, (_FULL - _LEFT - 8) / max(layers, 1)), 24.0
    bottom = _TOP + positions * height
    corners = {
        (layer, at): (_LEFT + layer * width, _TOP + at * height) for layer in range(layers) for at in range(positions)
    }
    step = heatmap.labelled(layers, width, 22)
    parts = [
        text(_LEFT, 14, "decoder layer →"),
        *_cells(grid, scale, corners, (width, height)),
        *(text(_LEFT - 8, _TOP + (at + 0.5) * height + 4, signed(p, 0), anchor="end") for at, p in _rows(grid)),
        *(text(_LEFT + (at + 0.5) * width, bottom + 15, str(at), anchor="middle") for at in step),
    ]
    return drawing(_LEFT + layers * width + 8, bottom + 20, _said(grid), parts, class_="chart wide")


def _tall(grid: LayerGrid, scale: heatmap.HeatMap) -> Markup:
    layers, positions = len(grid.values_NP), len(grid.positions)
    width, height = (_NARROW - _LEFT - 8) / max(positions, 1), max(8.0, min(18.0, 560.0 / max(layers, 1)))
    bottom = _TOP + layers * height
    corners = {
        (layer, at): (_LEFT + at * width, _TOP + layer * height) for layer in range(layers) for at in range(positions)
    }
    step = heatmap.labelled(layers, height)
    parts = [
        text(_LEFT, 14, "prompt token, from its end →"),
        *_cells(grid, scale, corners, (width, height)),
        *(text(_LEFT - 8, _TOP + (at + 0.5) * height + 4, str(at), anchor="end") for at in step),
        *(text(_LEFT + (at + 0.5) * width, bottom + 15, signed(p, 0), anchor="middle") for at, p in _rows(grid)),
    ]
    return drawing(_NARROW, bottom + 20, _said(grid), parts, class_="chart narrow")


def _cells(
    grid: LayerGrid,
    scale: heatmap.HeatMap,
    corners: dict[tuple[int, int], tuple[float, float]],
    size: tuple[float, float],
) -> Iterator[Markup]:
    yield tag("g", *(_cell(grid, scale, at, corners[at], size) for at in corners), class_="cells")
    if grid.chosen is not None:
        x, y = corners[grid.chosen]
        frame = tag("rect", x=x - 0.5, y=y - 0.5, width=size[0], height=size[1])
        yield tag("g", frame, class_="marks")


def _cell(
    grid: LayerGrid,
    scale: heatmap.HeatMap,
    at: tuple[int, int],
    corner: tuple[float, float],
    size: tuple[float, float],
) -> Markup:
    layer, place = at
    value, reason = grid.values_NP[layer][place], grid.dropped.get(at, "")
    effect = "not measured" if value is None else signed(value, 2)
    state = "; chosen" if at == grid.chosen else f"; {reason}" if reason else ""
    said = f"layer {layer}, token {signed(grid.positions[place], 0)}: {effect}{state}"
    shade = "absent" if value is None else scale.shade(value) + (" dropped" if reason else "")
    x, y = corner
    return tag("rect", tag("title", said), x=x, y=y, width=size[0] - 1, height=size[1] - 1, class_=shade)


def _rows(grid: LayerGrid) -> list[tuple[int, int]]:
    return list(enumerate(grid.positions))


def _said(grid: LayerGrid) -> str:
    chosen = ""
    if grid.chosen is not None:
        layer, place = grid.chosen
        chosen = f"; chosen: layer {layer}, token {signed(grid.positions[place], 0)}"
    return f"Change of the refusal score by {len(grid.values_NP)} layers and {len(grid.positions)} positions{chosen}"


def _scatter(found: Scatter, width: float, height: float, kind: str) -> Markup:
    bottom = _TOP + height
    x = Scale(*_range([one.x for one in found.points], found.limit), _LEFT + 6, width - 14)
    y = Scale(*_range([one.y for one in found.points]), bottom - 6, _TOP + 6)
    parts = [*_axes(found, x, y, bottom)]
    for name in found.series:
        marks = [_mark(one, list(found.series).index(name), x, y) for one in found.points if one.series == name]
        parts.append(tag("g", *marks, class_="points"))
    for one in found.points:
        if one.chosen:
            ring = tag("circle", cx=x(one.x), cy=y(one.y), r=8.0)
            parts.append(tag("g", ring, class_="ring"))
    place, under = _LEFT, bottom + 52
    for at, name in enumerate(found.series.values()):
        if place + 8 * len(name) + 24 > width and place > _LEFT:
            place, under = _LEFT, under + 20
        parts += [tag("circle", cx=place + 4, cy=under - 4, r=4.0, class_=f"dot s{at}"), text(place + 14, under, name)]
        place += 8 * len(name) + 34
    return drawing(width, under + 8, found.title, parts, class_=f"chart {kind}")


def _axes(found: Scatter, x: Scale, y: Scale, bottom: float) -> Iterator[Markup]:
    yield text(x.start, 14, found.y)
    for value in _ticks(y.low, y.high, 4):
        yield line((x.start, y(value)), (x.end, y(value)), "axis" if value == 0 else "grid")
        yield text(x.start - 8, y(value) + 4, _short(value), anchor="end")
    for value in _ticks(x.low, x.high, 4):
        yield line((x(value), y.start), (x(value), y.end))
        yield text(x(value), bottom + 14, _short(value), anchor="middle")
    if found.limit is not None:
        yield line((x(found.limit), y.start), (x(found.limit), y.end), "boundary")
    yield text(x.start, bottom + 32, f"{found.x} →")


def _mark(one: Point, colour: int, x: Scale, y: Scale) -> Markup:
    said = f"{one.label}: {_short(one.x)}, {signed(one.y, 2)}"
    return tag(
        "circle", tag("title", said), cx=x(one.x), cy=y(one.y), r=5.0 if one.chosen else 3.5, class_=f"dot s{colour}"
    )


def _range(values: Sequence[float], limit: float | None = None) -> tuple[float, float]:
    """The ends of an axis that holds the values, zero and the limit."""
    every = [*values, 0.0, *([] if limit is None else [limit])]
    low, high = min(every), max(every)
    high = high if high > low else low + 1.0
    step = round_up((high - low) / 5)
    return math.floor(low / step) * step, math.ceil(high / step) * step


def _ticks(low: float, high: float, count: int) -> list[float]:
    """About so many round values between the ends, zero among them where it lies there."""
    step = round_up((high - low) / count)
    return [step * at + 0.0 for at in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    return "0" if value == 0 else f"{value:.3g}".replace("-", "\u2212") if abs(value) >= 0.001 else number(value)

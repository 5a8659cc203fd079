"""Steering: effects by layer and position as a map, effects over routing or side effects as scatter plots."""

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


def scatter(plot: Scatter) -> Markup:
    """The plot for wide and narrow screens."""
    return _scatter(plot, _FULL, 300.0, "wide") + _scatter(plot, _NARROW, 260.0, "narrow")


def _scale(grid: LayerGrid) -> heatmap.HeatMap:
    """Shades as in the map of experts, up to the 99.5th percentile."""
    sizes = [abs(value) for row in grid.values_NP for value in row if value is not None]
    limit = round_up(float(np.quantile(sizes, 0.995))) if sizes else 1.0
    return heatmap.HeatMap(np.asarray([sizes or [0.0]], dtype=np.float64), frozenset(), limit)


def _wide(grid: LayerGrid, scale: heatmap.HeatMap) -> Markup:
    layers, positions = len(grid.values_NP), len(grid.positions)
    width, height = min(34.0, (_FULL - _LEFT - 8) / max(layers, 1)), 24.0
    bottom = _TOP + positions * height
    corners = {
        (layer, index): (_LEFT + layer * width, _TOP + index * height)
        for layer in range(layers)
        for index in range(positions)
    }
    step = heatmap.labelled(layers, width, 22)
    parts = [
        text(_LEFT, 14, "decoder layer →"),
        *_cells(grid, scale, corners, (width, height)),
        *(
            text(_LEFT - 8, _TOP + (index + 0.5) * height + 4, signed(position, 0), anchor="end")
            for index, position in enumerate(grid.positions)
        ),
        *(text(_LEFT + (layer + 0.5) * width, bottom + 15, str(layer), anchor="middle") for layer in step),
    ]
    return drawing(_LEFT + layers * width + 8, bottom + 20, _label(grid), parts, class_="chart wide")


def _tall(grid: LayerGrid, scale: heatmap.HeatMap) -> Markup:
    layers, positions = len(grid.values_NP), len(grid.positions)
    width, height = (_NARROW - _LEFT - 8) / max(positions, 1), max(8.0, min(18.0, 560.0 / max(layers, 1)))
    bottom = _TOP + layers * height
    corners = {
        (layer, index): (_LEFT + index * width, _TOP + layer * height)
        for layer in range(layers)
        for index in range(positions)
    }
    step = heatmap.labelled(layers, height)
    parts = [
        text(_LEFT, 14, "prompt token, from its end →"),
        *_cells(grid, scale, corners, (width, height)),
        *(text(_LEFT - 8, _TOP + (layer + 0.5) * height + 4, str(layer), anchor="end") for layer in step),
        *(
            text(_LEFT + (index + 0.5) * width, bottom + 15, signed(position, 0), anchor="middle")
            for index, position in enumerate(grid.positions)
        ),
    ]
    return drawing(_NARROW, bottom + 20, _label(grid), parts, class_="chart narrow")


def _cells(
    grid: LayerGrid,
    scale: heatmap.HeatMap,
    corners: dict[tuple[int, int], tuple[float, float]],
    size: tuple[float, float],
) -> Iterator[Markup]:
    yield tag("g", *(_cell(grid, scale, cell, corners[cell], size) for cell in corners), class_="cells")
    if grid.chosen is not None:
        x, y = corners[grid.chosen]
        frame = tag("rect", x=x - 0.5, y=y - 0.5, width=size[0], height=size[1])
        yield tag("g", frame, class_="marks")


def _cell(
    grid: LayerGrid,
    scale: heatmap.HeatMap,
    cell: tuple[int, int],
    corner: tuple[float, float],
    size: tuple[float, float],
) -> Markup:
    layer, index = cell
    value, reason = grid.values_NP[layer][index], grid.dropped.get(cell, "")
    effect = "not measured" if value is None else signed(value, 2)
    state = "; chosen" if cell == grid.chosen else f"; {reason}" if reason else ""
    title = f"layer {layer}, token {signed(grid.positions[index], 0)}: {effect}{state}"
    shade = "absent" if value is None else scale.shade(value) + (" dropped" if reason else "")
    x, y = corner
    return tag("rect", tag("title", title), x=x, y=y, width=size[0] - 1, height=size[1] - 1, class_=shade)


def _label(grid: LayerGrid) -> str:
    chosen = ""
    if grid.chosen is not None:
        layer, index = grid.chosen
        chosen = f"; chosen: layer {layer}, token {signed(grid.positions[index], 0)}"
    return f"Change of the refusal score by {len(grid.values_NP)} layers and {len(grid.positions)} positions{chosen}"


def _scatter(plot: Scatter, width: float, height: float, kind: str) -> Markup:
    bottom = _TOP + height
    x = Scale(*_range([point.x for point in plot.points], plot.limit), _LEFT + 6, width - 14)
    y = Scale(*_range([point.y for point in plot.points]), bottom - 6, _TOP + 6)
    parts = [*_axes(plot, x, y, bottom)]
    for colour, series in enumerate(plot.series):
        marks = [_mark(point, colour, x, y) for point in plot.points if point.series == series]
        parts.append(tag("g", *marks, class_="points"))
    for point in plot.points:
        if point.chosen:
            ring = tag("circle", cx=x(point.x), cy=y(point.y), r=8.0)
            parts.append(tag("g", ring, class_="ring"))
    left, under = _LEFT, bottom + 52
    for colour, name in enumerate(plot.series.values()):
        if left + 8 * len(name) + 24 > width and left > _LEFT:
            left, under = _LEFT, under + 20
        dot = tag("circle", cx=left + 4, cy=under - 4, r=4.0, class_=f"dot s{colour}")
        parts += [dot, text(left + 14, under, name)]
        left += 8 * len(name) + 34
    return drawing(width, under + 8, plot.title, parts, class_=f"chart {kind}")


def _axes(plot: Scatter, x: Scale, y: Scale, bottom: float) -> Iterator[Markup]:
    yield text(x.start, 14, plot.y)
    for value in _ticks(y.low, y.high, 4):
        yield line((x.start, y(value)), (x.end, y(value)), "axis" if value == 0 else "grid")
        yield text(x.start - 8, y(value) + 4, _short(value), anchor="end")
    for value in _ticks(x.low, x.high, 4):
        yield line((x(value), y.start), (x(value), y.end))
        yield text(x(value), bottom + 14, _short(value), anchor="middle")
    if plot.limit is not None:
        yield line((x(plot.limit), y.start), (x(plot.limit), y.end), "boundary")
    yield text(x.start, bottom + 32, f"{plot.x} →")


def _mark(point: Point, colour: int, x: Scale, y: Scale) -> Markup:
    title = tag("title", f"{point.label}: {_short(point.x)}, {signed(point.y, 2)}")
    radius = 5.0 if point.chosen else 3.5
    return tag("circle", title, cx=x(point.x), cy=y(point.y), r=radius, class_=f"dot s{colour}")


def _range(values: Sequence[float], limit: float | None = None) -> tuple[float, float]:
    """The ends of an axis that holds the values, zero and the limit."""
    numbers = [*values, 0.0, *([] if limit is None else [limit])]
    low, high = min(numbers), max(numbers)
    high = high if high > low else low + 1.0
    step = round_up((high - low) / 5)
    return math.floor(low / step) * step, math.ceil(high / step) * step


def _ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round values between the ends, zero included if it lies between them."""
    step = round_up((high - low) / count)
    return [step * index + 0.0 for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    return "0" if value == 0 else f"{value:.3g}".replace("-", "\u2212") if abs(value) >= 0.001 else number(value)

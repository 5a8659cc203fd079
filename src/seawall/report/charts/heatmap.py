"""Layer x expert map of the activation gap, the selected experts outlined. Legend: `L` MoE layers, `E` experts.

The colour scale diverges from a neutral middle in equal steps: orange for experts used more under attack, blue for
experts used less, a pair of colours that common colour-vision deficiencies can tell apart. The middle is the page's
background in either theme, so that differences stand out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from seawall.report.svg import drawing, line, round_up, tag, text
from seawall.report.wording import amount, signed

STEPS = 6
"""Shades on each side of the neutral middle; the stylesheet defines `p1..p6`, `n1..n6` and `z`."""
_FULL_WIDTH = 880.0
_LEFT, _TOP, _BARS = 44.0, 22.0, 84.0
Cell = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class HeatMap:
    """The gap, the selected cells, and the end of the scale (larger gaps get the last shade)."""

    gap_LE: npt.NDArray[np.float64]
    chosen: frozenset[Cell]
    limit: float

    def shade(self, value: float) -> str:
        """The class of a value's colour."""
        step = min(STEPS, round(abs(value) / self.limit * STEPS))
        if step == 0:
            return "z"
        return f"{'p' if value > 0 else 'n'}{step}"

    @property
    def is_clipped(self) -> bool:
        """Whether a gap lies beyond the end of the scale."""
        return bool(np.abs(self.gap_LE).max(initial=0.0) > self.limit)


def heat_map(gaps: Sequence[Sequence[float]], selected: Sequence[Sequence[int]]) -> HeatMap:
    """The map of these gaps. The scale ends at the 99.5th percentile of their size, so that outliers hide nothing."""
    gap_LE = np.asarray(gaps, dtype=np.float64)
    sizes = np.abs(gap_LE)
    limit = round_up(float(np.quantile(sizes, 0.995))) if sizes.size else 1.0
    chosen = frozenset((layer, expert) for layer, row in enumerate(selected) for expert in row)
    return HeatMap(gap_LE, chosen, limit)


def wide(heat: HeatMap) -> Markup:
    """Layers downwards, experts across, with a tooltip per cell and the count of selected experts per layer."""
    layers, experts = heat.gap_LE.shape
    width = min(30.0, (_FULL_WIDTH - _LEFT - _BARS) / experts)
    height = max(10.0, min(20.0, 460.0 / layers))
    right, bottom = _LEFT + experts * width, _TOP + layers * height
    cells = [_cell(heat, (layer, expert), (width, height)) for layer in range(layers) for expert in range(experts)]
    marks = [
        _outline(_LEFT + expert * width, _TOP + layer * height, (width, height), (layer, expert))
        for layer, expert in sorted(heat.chosen)
    ]
    parts = [
        text(_LEFT, 12, "expert →"),
        text(right + 12, 12, "selected"),
        tag("g", *cells, class_="cells"),
        tag("g", *marks, class_="marks"),
        *(
            text(_LEFT - 8, _TOP + (layer + 0.5) * height + 4, str(layer), anchor="end")
            for layer in labelled(layers, height)
        ),
        *(
            text(_LEFT + (expert + 0.5) * width, bottom + 15, str(expert), anchor="middle")
            for expert in labelled(experts, width, 24)
        ),
        *_counts(heat, right + 12, height),
    ]
    return drawing(right + _BARS, bottom + 22, _label(heat), parts, class_="chart wide")


def narrow(heat: HeatMap) -> Markup:
    """The map for phones: experts downwards, layers across, one path per shade, no tooltips."""
    layers, experts = heat.gap_LE.shape
    left, top, full = 34.0, 22.0, 340.0
    width = min(26.0, (full - left - 4) / layers)
    height = max(4.0, min(16.0, 640.0 / experts))
    bottom = top + experts * height
    shades: dict[str, list[str]] = {}
    for layer, expert in np.ndindex(layers, experts):
        corner = f"M{left + layer * width:.1f} {top + expert * height:.1f}"
        shape = f"{corner}h{width - 0.5:.1f}v{height - 0.5:.1f}h-{width - 0.5:.1f}z"
        shades.setdefault(heat.shade(float(heat.gap_LE[layer, expert])), []).append(shape)
    marks = [
        _outline(left + layer * width, top + expert * height, (width, height), (layer, expert))
        for layer, expert in sorted(heat.chosen)
    ]
    parts = [
        text(left, 12, "MoE layer →"),
        tag("g", *(tag("path", d="".join(shapes), class_=shade) for shade, shapes in shades.items()), class_="cells"),
        tag("g", *marks, class_="marks"),
        *(
            text(left - 6, top + (expert + 0.5) * height + 4, str(expert), anchor="end")
            for expert in labelled(experts, height)
        ),
        *(
            text(left + (layer + 0.5) * width, bottom + 14, str(layer), anchor="middle")
            for layer in labelled(layers, width)
        ),
    ]
    return drawing(left + layers * width + 4, bottom + 20, _label(heat), parts, class_="chart narrow")


def legend(heat: HeatMap) -> Markup:
    """The colour scale with its ends named."""
    shades = [f"n{step}" for step in range(STEPS, 0, -1)] + ["z"] + [f"p{step}" for step in range(1, STEPS + 1)]
    size = 18.0
    total = size * len(shades)
    swatches = [
        tag("rect", x=1 + place * size, y=18, width=size - 1, height=12, class_=shade)
        for place, shade in enumerate(shades)
    ]
    end = ("≥ " if heat.is_clipped else "") + signed(heat.limit, 2)
    start = ("≤ " if heat.is_clipped else "") + signed(-heat.limit, 2)
    marks = [
        text(1, 12, start),
        text(1 + total / 2, 12, "0", anchor="middle"),
        text(1 + total, 12, end, anchor="end"),
    ]
    label = f"colour scale from {signed(-heat.limit, 2)} (blue) over 0 to {signed(heat.limit, 2)} (orange)"
    return drawing(total + 2, 32, label, [tag("g", *swatches, class_="cells"), *marks], class_="chart legend")


def _cell(heat: HeatMap, cell: Cell, size: tuple[float, float]) -> Markup:
    layer, expert = cell
    value = float(heat.gap_LE[layer, expert])
    chosen = ", selected" if cell in heat.chosen else ""
    return tag(
        "rect",
        tag("title", f"layer {layer}, expert {expert}: {signed(value, 3)}{chosen}"),
        x=_LEFT + expert * size[0],
        y=_TOP + layer * size[1],
        width=size[0] - 1,
        height=size[1] - 1,
        class_=heat.shade(value),
    )


def _outline(x: float, y: float, size: tuple[float, float], cell: Cell) -> Markup:
    """A frame around a cell, transparent to the pointer for the cell's tooltip."""
    return tag("rect", x=x - 0.5, y=y - 0.5, width=size[0], height=size[1], data_cell=f"{cell[0]},{cell[1]}")


def _counts(heat: HeatMap, left: float, height: float) -> Iterable[Markup]:
    per_layer = [sum(1 for layer, _ in heat.chosen if layer == row) for row in range(heat.gap_LE.shape[0])]
    longest = max(per_layer, default=0) or 1
    for layer, count in enumerate(per_layer):
        y = _TOP + layer * height
        width = 40.0 * count / longest
        if count:
            yield tag("rect", x=left, y=y + 1, width=width, height=height - 3, class_="bar")
        if layer in labelled(len(per_layer), height):
            yield text(left + width + 5, y + height / 2 + 4, str(count))
    yield line((left, _TOP), (left, _TOP + len(per_layer) * height), "axis")


def labelled(count: int, size: float, room: float = 16) -> range:
    """Rows or columns with a number: all, or every 2nd, 4th, 8th, ... if they are narrow."""
    step = 1
    while step * size < room and step < count:
        step *= 2
    return range(0, count, step)


def _label(heat: HeatMap) -> str:
    layers, experts = heat.gap_LE.shape
    return (
        f"Activation gap of {amount(layers, 'layer')} by {amount(experts, 'expert')}; "
        f"{len(heat.chosen)} selected experts are outlined and listed below"
    )

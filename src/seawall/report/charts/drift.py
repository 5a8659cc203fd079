"""Routing drift, one bar per MoE layer."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from seawall.report.svg import Scale, drawing, line, round_up, tag, text, ticks
from seawall.report.wording import number

_TOP, _BOTTOM, _LEFT = 14.0, 154.0, 48.0


def drift_bars(values: Sequence[float], *, narrow: bool = False) -> Markup:
    """Bars over an axis from 0 to a round value above the largest, at most 1."""
    full = 340.0 if narrow else 880.0
    width = min(34.0, (full - _LEFT) / len(values))
    y = Scale(0, min(1.0, round_up(max(values))), _BOTTOM, _TOP)
    right = _LEFT + width * len(values)
    parts = []
    for tick in ticks(y.high, 4):
        parts += [line((_LEFT, y(tick)), (right, y(tick))), text(_LEFT - 8, y(tick) + 4, f"{tick:g}", anchor="end")]
    for layer, value in enumerate(values):
        title = tag("title", f"layer {layer}: {number(value, 4)}")
        left = _LEFT + layer * width
        size = {"width": width - max(1.0, width * 0.2), "height": _BOTTOM - y(value)}
        parts.append(tag("rect", title, x=left, y=y(value), class_="bar", **size))
    step = next(step for step in (1, 2, 4, 8, 16, 32, 64, len(values)) if step * width >= 18 or step >= len(values))
    parts += [
        text(_LEFT + (layer + 0.4) * width, _BOTTOM + 16, str(layer), anchor="middle")
        for layer in range(0, len(values), step)
    ]
    parts.append(text(_LEFT, _BOTTOM + 34, "MoE layer →"))
    worst = max(range(len(values)), key=values.__getitem__)
    label = f"Routing drift per layer, largest in layer {worst}: {number(values[worst], 4)}"
    return drawing(right + 4, _BOTTOM + 40, label, parts, class_=f"chart {'narrow' if narrow else 'wide'}")

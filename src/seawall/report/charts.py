"""Charts as inline SVG: no library, no script, readable in both themes, each with a title for screen readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from seawall.report.inputs import GroupRow
from seawall.report.wording import group_name, number, percent, percent_range, plain_name

_CELL_HEIGHT = 16
_SERIES = ("c1", "c2", "c3", "c4")


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> Markup:
    body = "".join(parts)
    box = f'viewBox="0 0 {width:.0f} {height:.0f}"'
    return Markup(f'<svg {box} role="img" class="chart"><title>{escape(title)}</title>{body}</svg>')


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def dumbbells(groups: Sequence[GroupRow]) -> Markup:
    """Before (hollow) and after (filled) on one axis from 0 to 100 %, each with its interval."""
    left, right, row = 190.0, 720.0, 34.0
    height = row * len(groups) + 40

    def x(rate: float) -> float:
        return left + (right - left) * rate

    parts = [
        f'<line x1="{x(tick):.1f}" y1="8" x2="{x(tick):.1f}" y2="{height - 28:.1f}" class="grid"/>'
        + _text(x(tick), height - 10, f"{tick:.0%}", "tick", "middle")
        for tick in (0, 0.25, 0.5, 0.75, 1)
    ]
    for place, group in enumerate(groups):
        y = 24 + row * place
        parts.append(_text(left - 16, y + 4, group_name(group.group), "label", "end"))
        for kind, interval, dy in (("before", group.before, -5), ("after", group.after, 5)):
            if interval is None:
                continue
            span = percent_range(interval.low, interval.high)
            note = f"{group_name(group.group)}, {kind}: {percent(interval.rate)} ({span})"
            parts.append(
                f'<g class="{kind}"><title>{escape(note)}</title>'
                f'<line x1="{x(interval.low):.1f}" y1="{y + dy:.1f}" x2="{x(interval.high):.1f}" y2="{y + dy:.1f}"/>'
                f'<circle cx="{x(interval.rate):.1f}" cy="{y + dy:.1f}" r="5"/></g>'
            )
    return _svg(760, height, "Rates before and after the repair, with 95 % intervals", parts)


def heat_map(gaps: Sequence[Sequence[float]], selected: Sequence[Sequence[int]]) -> Markup:
    """Layers downwards, experts across; orange: used more by attacks, blue: less; outlined: selected."""
    if not gaps:
        return Markup("")
    layers, experts = len(gaps), len(gaps[0])
    width = max(5.0, min(22.0, 700.0 / experts))
    most = max(max(abs(gap) for gap in row) for row in gaps) or 1.0
    chosen = {(layer, expert) for layer, row in enumerate(selected) for expert in row}
    parts = []
    for layer, row in enumerate(gaps):
        parts.append(_text(36, 14 + layer * _CELL_HEIGHT + 11, str(layer), "tick", "end"))
        for expert, gap in enumerate(row):
            mark = " picked" if (layer, expert) in chosen else ""
            said = f"layer {layer}, expert {expert}: {gap:+.3f}{', selected' if mark else ''}"
            parts.append(
                f'<rect x="{42 + expert * width:.1f}" y="{14 + layer * _CELL_HEIGHT}" width="{width - 1.5:.1f}" '
                f'height="{_CELL_HEIGHT - 2}" class="{"more" if gap >= 0 else "less"}{mark}" '
                f'fill-opacity="{min(1.0, abs(gap) / most):.3f}"><title>{escape(said)}</title></rect>'
            )
    bottom = 14 + layers * _CELL_HEIGHT
    step = 1 if experts <= 16 else 4 if experts <= 64 else 16
    parts += [_text(42 + (e + 0.5) * width, bottom + 14, str(e), "tick", "middle") for e in range(0, experts, step)]
    parts.append(_text(42 + experts * width / 2, bottom + 32, "expert (rows: MoE layers)", "tick", "middle"))
    return _svg(60 + experts * width, bottom + 40, "Activation gap of every expert, selected experts outlined", parts)


def lines(series: Mapping[str, Sequence[tuple[float, float]]], title: str, *, rate: bool = False) -> Markup:
    """Line chart of named series of (x, y). With `rate` the vertical axis runs from 0 to 100 %."""
    points = [point for one in series.values() for point in one]
    if not points:
        return Markup("")
    x0, x1 = min(x for x, _ in points), max(x for x, _ in points)
    top = 1.0 if rate else max(y for _, y in points) * 1.05 or 1.0
    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = 210 - 190 * share
        said = percent(share, 0) if rate else number(top * share, 2)
        parts.append(f'<line x1="60" y1="{y:.1f}" x2="700" y2="{y:.1f}" class="grid"/>')
        parts.append(_text(52, y + 4, said, "tick", "end"))
    for (name, values), kind in zip(series.items(), _SERIES * len(series), strict=False):
        drawn = [(60 + 640 * (x - x0) / ((x1 - x0) or 1), 210 - 190 * min(1.0, y / top)) for x, y in values]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
        parts.append(f'<polyline points="{path}" class="line {kind}"><title>{escape(name)}</title></polyline>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="dot {kind}"/>' for x, y in drawn if len(drawn) < 40]
    parts += [_text(60, 230, f"{x0:g}", "tick", "middle"), _text(700, 230, f"{x1:g}", "tick", "middle")]
    at = 60.0
    for name, kind in zip(series, _SERIES * len(series), strict=False):
        parts.append(f'<rect x="{at:.1f}" y="246" width="14" height="4" class="swatch {kind}"/>')
        parts.append(_text(at + 20, 252, plain_name(name), "tick"))
        at += 50 + 7.2 * len(name)
    return _svg(720, 262, title, parts)


def bars(values: Sequence[float], title: str) -> Markup:
    """One bar per MoE layer, from 0."""
    if not values:
        return Markup("")
    most = max(max(values), 1e-12)
    width = min(40.0, 640.0 / len(values))
    parts = [_text(52, 24, number(most), "tick", "end"), _text(52, 154, "0", "tick", "end")]
    for layer, value in enumerate(values):
        height = 130 * value / most
        parts.append(
            f'<rect x="{60 + layer * width:.1f}" y="{150 - height:.1f}" width="{width - 3:.1f}" height="{height:.1f}" '
            f'class="bar"><title>layer {layer}: {number(value, 4)}</title></rect>'
        )
        if len(values) <= 24 or layer % 4 == 0:
            parts.append(_text(60 + (layer + 0.5) * width - 1.5, 168, str(layer), "tick", "middle"))
    return _svg(720, 176, title, parts)


def loss_series(
    updates: Sequence[Mapping[str, Any]], phase: str, keys: Sequence[str]
) -> dict[str, list[tuple[float, float]]]:
    """Series of one step's losses by update."""
    rows = [row for row in updates if row.get("phase") == phase]
    found = {key: [(float(row["step"]), float(row[key])) for row in rows if key in row] for key in keys}
    return {key: values for key, values in found.items() if values}

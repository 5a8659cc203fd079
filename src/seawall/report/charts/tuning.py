"""Fine-tuning over its steps: a panel for each quantity, a line for each method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from seawall.report.charts.curves import Panel, Series, draw_panel
from seawall.report.svg import Scale, drawing, text, ticks
from seawall.report.tuning import Curve

_PER_PANEL = 4
"""Lines of a panel, one for each colour."""
_LEFT, _STEP, _TOP = 56.0, 178.0, 20.0


def tuning_curves(curves: Sequence[Curve]) -> Markup:
    """The chart for wide and narrow screens."""
    return _drawn(curves) + _drawn(curves, narrow=True)


def _drawn(curves: Sequence[Curve], *, narrow: bool = False) -> Markup:
    full, right = (340.0, 104.0) if narrow else (880.0, 130.0)
    last = max(points[-1][0] for curve in curves for points in curve.lines.values())
    x = Scale(0, max(last, 1), _LEFT, full - right)
    panels = [*_panels(curves)]
    parts: list[Markup] = []
    for place, panel in enumerate(panels):
        parts += draw_panel(panel, x, _TOP + place * _STEP)
    bottom = _TOP + len(panels) * _STEP - 22
    parts += [text(x(tick), bottom, f"{tick:g}", anchor="middle") for tick in ticks(x.high, 3 if narrow else 6)]
    parts.append(text(x.start, bottom + 17, "optimizer steps →"))
    label = "; ".join(f"{panel.title}: {', '.join(series.name for series in panel.series)}" for panel in panels)
    class_ = f"chart {'narrow' if narrow else 'wide'}"
    return drawing(full, bottom + 22, f"{label}; last values in the table below", parts, class_=class_)


def _panels(curves: Sequence[Curve]) -> Iterator[Panel]:
    for curve in curves:
        lines = [Series(name, (tuple(points),)) for name, points in curve.lines.items()]
        for start in range(0, len(lines), _PER_PANEL):
            yield Panel(curve.title, tuple(lines[start : start + _PER_PANEL]))

"""A gene: how two models differ by layer, and how their divergence fell while it was distilled."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from seawall.report.charts.curves import Panel, Series, draw_panel
from seawall.report.gene import GeneCurve, GeneRow
from seawall.report.svg import Scale, drawing, text, ticks

_LEFT, _STEP = 56.0, 178.0


def layer_curves(rows: Sequence[GeneRow], *, narrow: bool = False) -> Markup:
    """Two panels over the layers: of what each writes itself, and of its output."""
    own = (
        Series("harmful", (tuple((float(one.layer), one.harmful) for one in rows),), dotted=True),
        Series("harmless", (tuple((float(one.layer), one.benign) for one in rows),), dotted=True),
    )
    stream = (
        Series("harmful", (tuple((float(one.layer), one.stream_harmful) for one in rows),), dotted=True),
        Series("harmless", (tuple((float(one.layer), one.stream_benign) for one in rows),), dotted=True),
    )
    panels = [Panel("What the layer itself writes: relative difference", own), Panel("Its output", stream)]
    best = max(rows, key=lambda one: one.harmful - one.benign)
    label = f"Differences by layer; contrast of what a layer writes is largest in layer {best.layer}"
    return _drawn(panels, max(one.layer for one in rows), "decoder layer \u2192", label, narrow=narrow)


def divergence_curve(curve: Sequence[GeneCurve], *, narrow: bool = False) -> Markup:
    """One panel over the updates."""
    series = (
        Series("harmful", (tuple((float(one.step), one.harmful) for one in curve),), dotted=True),
        Series("harmless", (tuple((float(one.step), max(0.0, one.benign)) for one in curve),), dotted=True),
    )
    label = f"Held-out divergence on harmful requests from {curve[0].harmful:.3f} to {curve[-1].harmful:.3f} nats"
    panels = [Panel("Held-out KL(aligned || degraded + gene), nats per token", series)]
    return _drawn(panels, curve[-1].step, "updates \u2192", label, narrow=narrow)


def _drawn(panels: Sequence[Panel], last: float, axis: str, label: str, *, narrow: bool) -> Markup:
    full, right = (340.0, 80.0) if narrow else (880.0, 130.0)
    x = Scale(0, max(last, 1), _LEFT, full - right)
    height = 26 + len(panels) * _STEP
    parts: list[Markup] = []
    for place, panel in enumerate(panels):
        parts += draw_panel(panel, x, 24 + place * _STEP)
    parts += [text(x(tick), height - 16, f"{tick:g}", anchor="middle") for tick in ticks(x.high, 3 if narrow else 6)]
    parts.append(text(x.start, height - 1, axis))
    return drawing(full, height + 4, label, parts, class_=f"chart {'narrow' if narrow else 'wide'}")

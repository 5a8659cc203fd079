"""A gene: differences of two models by layer, and their divergence during distillation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from seawall.artifacts.gene import GeneLayer, GeneStep
from seawall.report.charts.curves import Panel, Point, Series, draw_panel
from seawall.report.svg import Scale, drawing, text, ticks

_LEFT, _STEP = 56.0, 178.0


def layer_chart(layers: Sequence[GeneLayer]) -> Markup:
    """The differences by layer, for wide and narrow screens."""
    return layer_curves(layers) + layer_curves(layers, narrow=True)


def divergence_chart(curve: Sequence[GeneStep]) -> Markup:
    """The divergence during distillation, for wide and narrow screens."""
    return divergence_curve(curve) + divergence_curve(curve, narrow=True)


def layer_curves(layers: Sequence[GeneLayer], *, narrow: bool = False) -> Markup:
    """Two panels over the layers: of each layer's own contribution, and of its output."""
    own = _two_series(
        ((layer.layer, layer.harmful) for layer in layers), ((layer.layer, layer.benign) for layer in layers)
    )
    stream = _two_series(
        ((layer.layer, layer.stream_harmful) for layer in layers),
        ((layer.layer, layer.stream_benign) for layer in layers),
    )
    panels = [Panel("What the layer itself writes: relative difference", own), Panel("Its output", stream)]
    best = max(layers, key=lambda layer: layer.score)
    label = f"Differences by layer; contrast of what a layer writes is largest in layer {best.layer}"
    return _drawn(panels, max(layer.layer for layer in layers), "decoder layer \u2192", label, narrow=narrow)


def divergence_curve(curve: Sequence[GeneStep], *, narrow: bool = False) -> Markup:
    """One panel over the updates."""
    series = _two_series(
        ((step.step, step.harmful) for step in curve), ((step.step, max(0.0, step.benign)) for step in curve)
    )
    label = f"Held-out divergence on harmful requests from {curve[0].harmful:.3f} to {curve[-1].harmful:.3f} nats"
    panels = [Panel("Held-out KL(aligned || degraded + gene), nats per token", series)]
    return _drawn(panels, curve[-1].step, "updates \u2192", label, narrow=narrow)


def _two_series(harmful: Iterable[Point], harmless: Iterable[Point]) -> tuple[Series, Series]:
    return (
        Series("harmful", (tuple(harmful),), dotted=True),
        Series("harmless", (tuple(harmless),), dotted=True),
    )


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

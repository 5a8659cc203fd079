"""The little that charts need of SVG: elements that escape what they are given, a linear scale, round ticks.

Colours and fonts come from classes and the page's stylesheet, so that one drawing serves both themes and print.
Inline `style` attributes are not used: the page's policy forbids them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup, escape

from seawall.visible import visible

Attribute = str | int | float


def tag(name: str, *children: str, **attributes: Attribute) -> Markup:
    """An element. Plain strings are escaped, markup is kept; `class_` is `class`, `stroke_width` is `stroke-width`."""
    written = "".join(f' {_name(key)}="{_value(value)}"' for key, value in attributes.items())
    body = "".join(child if isinstance(child, Markup) else escape(visible(child)) for child in children)
    return Markup(f"<{name}{written}>{body}</{name}>")


def drawing(width: float, height: float, label: str, parts: Iterable[Markup], *, class_: str = "chart") -> Markup:
    """A whole chart, as an image with a spoken label. Its numbers must also stand in the page as text."""
    box = f"0 0 {_value(width)} {_value(height)}"
    return tag("svg", *parts, viewBox=box, width=width, height=height, role="img", aria_label=label, class_=class_)


def text(x: float, y: float, content: str, class_: str = "tick", anchor: str = "start") -> Markup:
    """A line of text at its baseline."""
    return tag("text", content, x=x, y=y, class_=class_, text_anchor=anchor)


def line(start: tuple[float, float], end: tuple[float, float], class_: str = "grid") -> Markup:
    """A straight line between two points."""
    return tag("line", x1=start[0], y1=start[1], x2=end[0], y2=end[1], class_=class_)


def _name(key: str) -> str:
    return "viewBox" if key == "viewBox" else key.rstrip("_").replace("_", "-")


def _value(value: Attribute) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".") or "0"
    return str(escape(visible(str(value))))


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps `low..high` linearly onto `start..end`; a domain without width maps onto the middle."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where the value lies."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.end - self.start)


def round_up(value: float) -> float:
    """The next 1, 1.5, 2, 2.5, 3, 4, 5, 6 or 8 times a power of ten: an end of an axis that reads well."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    steps = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
    return next(step * power for step in steps if step * power >= value * (1 - 1e-9))


def ticks(high: float, count: int = 4) -> list[float]:
    """About `count` round values from 0 up to `high`."""
    step = round_up(high / count)
    return [step * place for place in range(int(high / step + 1e-9) + 1)]

"""The outcome of an attack family's candidate pairs, as one bar."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from seawall.report.svg import drawing, tag
from seawall.report.wording import amount

_WIDTH = 220.0


def pair_bar(profiled: int, dropped: Mapping[str, int], largest: int) -> Markup:
    """Profiled pairs filled, dropped ones by reason as lighter pieces; `largest` candidates fill the width."""
    pieces = [("kept", profiled), *dropped.items()]
    parts, left = [], 0.0
    for place, (reason, count) in enumerate(pieces):
        width = _WIDTH * count / max(largest, 1)
        if width:
            shade = f"piece{min(place, 4)}"
            title = tag("title", f"{count} {reason}")
            parts.append(tag("rect", title, x=left, y=2, width=max(width - 1.5, 0.5), height=12, class_=shade))
        left += width
    label = f"{amount(profiled, 'pair')} kept, {sum(dropped.values())} dropped"
    return drawing(_WIDTH, 16, label, parts, class_="chart share")

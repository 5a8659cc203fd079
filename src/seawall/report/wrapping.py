"""The wrapping gap and the separation as the report shows them, from `wrapping` of `summary.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seawall.artifacts.evaluation import Contrast, Difference
from seawall.artifacts.groups import NONE_SCORED, WRAPPING_NAMES
from seawall.report.wording import points, points_range


@dataclass(frozen=True, slots=True)
class WrappingRow:
    """One measure before and after.

    Args:
        measure: its name in `WRAPPING_NAMES`.
        before, after: differences of refusal rates.
        change: after minus before.
    """

    measure: str
    before: Contrast
    after: Contrast
    change: Difference

    @property
    def name(self) -> str:
        """The reader's name, with a capital."""
        name = WRAPPING_NAMES[self.measure]
        return name[:1].upper() + name[1:]

    @property
    def effect(self) -> str:
        """`better`, `worse` or `unclear`. A separation should rise; a gap should be 0."""
        before, after = self.before.difference, self.after.difference
        if not self.change.is_clear or before is None or after is None:
            return "unclear"
        is_better = abs(after) < abs(before) if self.measure.startswith("gap") else after > before
        return "better" if is_better else "worse"


def wrapping_rows(summary: Mapping[str, Any]) -> list[WrappingRow]:
    """The measures in the order of tables; empty where the run lacks them."""
    measured = summary.get("wrapping") or {}
    return [
        WrappingRow(
            name,
            Contrast(**measured[name]["before"]),
            Contrast(**measured[name]["after"]),
            Difference(**measured[name]["change"]),
        )
        for name in WRAPPING_NAMES
        if name in measured
    ]


def contrast_text(contrast: Contrast) -> str:
    """A difference in points: `+12.3`."""
    return NONE_SCORED if contrast.difference is None else points(contrast.difference)


def contrast_span(contrast: Contrast) -> str:
    """A difference in points with its interval: `+12.3 (+2.0 to +30.0)`."""
    return f"{contrast_text(contrast)} ({points_range(contrast.low, contrast.high)})"

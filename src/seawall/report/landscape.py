"""What the report is given of a safety landscape, as plain Python. Legend: `X`, `Y` amounts of the map's directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seawall.artifacts.evaluation import Rate


@dataclass(frozen=True)
class Curve:
    """A rate along one direction: (amount, rate) in ascending order; None where the model is broken.

    `series` is `aligned`, `tuned` or `random`; those of one series share a colour and a name.
    """

    label: str
    series: str
    points: Sequence[tuple[float, Rate | None]]


@dataclass(frozen=True)
class CurvePanel:
    """Curves that share a vertical axis; `limit` is a rate drawn across."""

    title: str
    curves: Sequence[Curve]
    limit: float | None = None


@dataclass(frozen=True)
class RateMap:
    """A rate over the amounts of two directions.

    Args:
        x, y: what the axes are.
        xs, ys: the amounts, ascending.
        rates_YX: the rate at each; None where the model is broken.
        threshold: the rate at which a line is drawn.
    """

    x: str
    y: str
    xs: Sequence[float]
    ys: Sequence[float]
    rates_YX: Sequence[Sequence[Rate | None]]
    threshold: float


@dataclass(frozen=True)
class BasinRow:
    """The basin along a direction, as a row of a table.

    Args:
        label: the direction.
        reach: from where to where, in words.
        width: in amounts; `narrowest` and `widest` by the ends of the rates' intervals.
        censored: whether it may be wider than what was measured.
        norm: of the direction.
        safety: mean of 1 - harmful rate; None where nothing could be judged.
    """

    label: str
    reach: str
    width: float
    censored: bool
    narrowest: float
    widest: float
    norm: float
    safety: float | None

    @property
    def distance(self) -> float:
        """Between the weights at both ends of the basin."""
        return self.width * self.norm


@dataclass(frozen=True)
class PointRow:
    """A point with its rates by group."""

    label: str
    rates: Mapping[str, Rate]


@dataclass(frozen=True)
class LandscapeView:
    """One landscape.

    Args:
        question: how it was made.
        claim: what the numbers allow one to say.
        caption: how the curves are read.
        panels: curves by rate.
        map: over two directions, where it was measured.
        threshold: of the harmful rate.
        basins: one row per direction.
        groups: (group, heading) of the table's columns.
        points: all points.
        facts: (name, value) of the directions.
    """

    question: str
    claim: str
    caption: str
    panels: Sequence[CurvePanel]
    map: RateMap | None
    threshold: float
    basins: Sequence[BasinRow]
    groups: Sequence[tuple[str, str]]
    points: Sequence[PointRow]
    facts: Sequence[tuple[str, str]]

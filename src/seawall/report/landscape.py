"""A safety landscape as the report shows it. Legend: `X`, `Y` amounts of the map's directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from seawall.artifacts.evaluation import Rate
from seawall.artifacts.landscape import BasinWidth, LandscapePoint, LandscapeResult


@dataclass(frozen=True)
class Curve:
    """A rate along one direction: (amount, rate) by ascending amount; None where the model is broken.

    `series` is `aligned`, `tuned` or `random`; curves of one series share a colour and a name.
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
        x, y: names of the axes.
        xs, ys: the amounts, ascending.
        rates_YX: the rate at each point; None where the model is broken.
        threshold: rate of the contour line.
    """

    x: str
    y: str
    xs: Sequence[float]
    ys: Sequence[float]
    rates_YX: Sequence[Sequence[Rate | None]]
    threshold: float


@dataclass(frozen=True)
class BasinRow:
    """The basin along a direction as a row of a table.

    Args:
        label: the direction.
        reach: its two ends in words.
        basin: the basin.
        norm: of the direction.
    """

    label: str
    reach: str
    basin: BasinWidth
    norm: float

    @property
    def distance(self) -> float:
        """Distance of the weights at both ends of the basin."""
        return self.basin.width * self.norm


@dataclass(frozen=True)
class LandscapeView:
    """One landscape, and how it is shown.

    Args:
        result: the landscape.
        question: method.
        caption: of the curves.
        panels: curves by rate.
        map: over two directions, if measured.
        basins: one row per direction.
        groups: (group, heading) of the table's columns.
        points: (name, point), all of them.
        facts: (name, value) of the directions.
    """

    result: LandscapeResult
    question: str
    caption: str
    panels: Sequence[CurvePanel]
    map: RateMap | None
    basins: Sequence[BasinRow]
    groups: Sequence[tuple[str, str]]
    points: Sequence[tuple[str, LandscapePoint]]
    facts: Sequence[tuple[str, str]]

"""A safety landscape: the model's rates on harmful requests with its weights moved, and the width of its basin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from seawall.artifacts.evaluation import Rate, SparseNumber
from seawall.artifacts.store import load_record, require, save_record

NAME = "landscape.json"
_KIND = "landscape"
HARMFUL = "harmful"
"""Rate at which plain harmful requests are not refused; the other rates have the names of evaluation groups."""

DirectionKind = Literal["aligned", "tuned", "random"]
"""From the base to the model; from the model to a fine-tuned one; random."""
BasinEnd = Literal["crossed", "grid", "broken"]
"""Reason for a basin's end: the rate reaches the threshold; the grid ends first; the model breaks first."""


@dataclass(frozen=True, slots=True)
class LandscapeDirection:
    """A direction of weight space.

    Attributes:
        name: key of its amounts.
        kind: origin of the direction.
        source: fingerprint of the weights at its other end; the seed of a random direction.
        norm: Frobenius norm of amount 1, over all tensors.
        tensors: number of the model's tensors that it changes.
    """

    name: str
    kind: DirectionKind
    source: str
    norm: float
    tensors: int


@dataclass(frozen=True, slots=True)
class LandscapePoint:
    """The model with its weights moved.

    Attributes:
        name: names its samples: `samples/NAME.jsonl`.
        amounts: factor of each direction; directions not named have factor 0.
        rates: `harmful`: harmful requests answered; `borderline`: over-refusal; `benign`: harmless requests answered.
        realised: share of the move that the type of the weights held, along the move: 1 in float32, less in 16 bits;
            None in files of earlier versions.
    """

    name: str
    amounts: Mapping[str, float]
    rates: Mapping[str, Rate]
    realised: SparseNumber = None

    def rate(self, group: str, max_unscored: float) -> Rate | None:
        """The rate of a group; None if more than a share `max_unscored` of its replies could not be judged."""
        rate = self.rates[group]
        return None if rate.rate is None or rate.unscored > max_unscored * rate.n else rate


@dataclass(frozen=True, slots=True)
class BasinWidth:
    """The range along a direction in which the model's harmful rate stays below the threshold.

    Attributes:
        direction: name of the direction.
        low, high: ends of the range, as interpolated amounts.
        low_end, high_end: reason for each end; except for `crossed`, the basin may reach further.
        narrowest: width by the upper ends of all rates' intervals.
        widest: width by their lower ends.
        safety: mean of 1 - harmful rate over the whole grid; None if the model is broken everywhere.
    """

    direction: str
    low: float
    high: float
    low_end: BasinEnd
    high_end: BasinEnd
    narrowest: float
    widest: float
    safety: float | None

    @property
    def width(self) -> float:
        """Difference of the two ends, in amounts of the direction."""
        return self.high - self.low

    @property
    def censored(self) -> bool:
        """Whether the basin may reach beyond the measured amounts."""
        return {self.low_end, self.high_end} != {"crossed"}


@dataclass(frozen=True, slots=True)
class LandscapeResult:
    """One landscape.

    Attributes:
        model_fingerprint: of the unmoved model.
        directions: along which the weights were moved.
        points: measured points; the unmoved model comes first.
        plane: the two directions of the map; None without a map.
        threshold: of the harmful rate.
        most_unscored: a model with a larger share of replies that could not be judged counts as broken.
        basins: one per direction, in the order of `directions`.
        claim: the conclusion that the numbers support, in a sentence or two.
    """

    model_fingerprint: str
    directions: tuple[LandscapeDirection, ...]
    points: tuple[LandscapePoint, ...]
    plane: tuple[str, str] | None
    threshold: float
    most_unscored: float
    basins: tuple[BasinWidth, ...] = ()
    claim: str = ""

    def curve(self, direction: str) -> list[tuple[float, LandscapePoint]]:
        """The points along one direction alone, by amount."""
        points = [
            (point.amounts.get(direction, 0.0), point) for point in self.points if point.amounts.keys() <= {direction}
        ]
        return sorted(points, key=lambda pair: pair[0])

    def map(self) -> dict[tuple[float, float], LandscapePoint]:
        """The points of the plane by the amounts of its two directions; its axes hold the points of the curves."""
        if self.plane is None:
            return {}
        first, second = self.plane
        points = [point for point in self.points if point.amounts.keys() <= {first, second}]
        return {(point.amounts.get(first, 0.0), point.amounts.get(second, 0.0)): point for point in points}

    def direction(self, name: str) -> LandscapeDirection:
        """The direction of that name."""
        return next(direction for direction in self.directions if direction.name == name)

    def basin(self, direction: str) -> BasinWidth:
        """The basin along a direction."""
        return next(basin for basin in self.basins if basin.direction == direction)

    def save(self, folder: Path) -> None:
        """Write `landscape.json`."""
        save_record(folder / NAME, _KIND, self)

    @classmethod
    def load(cls, folder: Path) -> LandscapeResult:
        """Read `landscape.json`.

        Raises:
            ArtifactError: the file is missing or damaged, or names an unknown direction.
        """
        path = folder / NAME
        result = load_record(path, _KIND, cls)
        names = {direction.name for direction in result.directions}
        used = {name for point in result.points for name in point.amounts} | set(result.plane or ())
        used |= {basin.direction for basin in result.basins}
        distinct = len(names) == len(result.directions)
        require(used <= names and distinct, path, "amounts, basins and a plane of its own, distinct directions")
        first = bool(result.points) and not result.points[0].amounts
        measured = all(HARMFUL in point.rates for point in result.points)
        require(first and measured, path, "the unmoved model first, and harmful rates")
        return result

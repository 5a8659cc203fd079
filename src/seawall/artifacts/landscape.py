"""A safety landscape: what a model does to harmful requests while its weights move, and how wide its basin is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from seawall.artifacts.evaluation import Rate
from seawall.artifacts.store import Fields, load_document, parse_fields, require, save_document

NAME = "landscape.json"
_KIND = "landscape"
HARMFUL = "harmful"
"""The rate of plain harmful requests that are answered; the others go by the names of evaluation groups."""

DirectionKind = Literal["aligned", "tuned", "random"]
"""From the base to the model; from the model to a fine-tuned one; at random."""
BasinEnd = Literal["crossed", "grid", "broken"]
"""Why a basin ends: the rate reaches the threshold; the grid ends first; the model breaks first."""


@dataclass(frozen=True, slots=True)
class LandscapeDirection:
    """A direction of weight space.

    Attributes:
        name: names its amounts.
        kind: what it is.
        source: fingerprint of the weights that it was made from; the seed of a random one.
        norm: Frobenius norm of what amount 1 adds, over all tensors.
        tensors: how many of the model's tensors it changes.
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
        amounts: how much of which direction; those that are not named have none.
        rates: `harmful`: harmful requests answered; `borderline`: over-refusal; `benign`: harmless ones answered.
    """

    name: str
    amounts: Mapping[str, float]
    rates: Mapping[str, Rate]

    def harmful(self, most_unscored: float) -> Rate | None:
        """The rate of harmful requests answered; None where too many of the replies could not be judged."""
        rate = self.rates[HARMFUL]
        return None if rate.unscored > most_unscored * rate.n else rate


@dataclass(frozen=True, slots=True)
class BasinWidth:
    """How far the model can be moved along a direction while its harmful rate stays below the threshold.

    Attributes:
        direction: which.
        low, high: the amounts between which it does, interpolated.
        low_end, high_end: why it ends there; other than `crossed` it reaches at least so far.
        narrowest: width by the upper ends of all rates' intervals.
        widest: by their lower ends.
        safety: mean of 1 - harmful rate over the whole grid; None where the model is broken everywhere.
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
        """High less low, in amounts of the direction."""
        return self.high - self.low

    @property
    def censored(self) -> bool:
        """Whether it may reach further than what was measured."""
        return {self.low_end, self.high_end} != {"crossed"}


@dataclass(frozen=True, slots=True)
class LandscapeResult:
    """One landscape.

    Attributes:
        model_fingerprint: of the model as it is.
        directions: along which it was moved.
        points: what was measured; the model as it is comes first.
        plane: the two directions of the map; None where there is none.
        threshold: of the harmful rate.
        most_unscored: a model with a larger share of replies that cannot be judged counts as broken.
        basins: one per direction, in their order.
        claim: what the numbers allow one to say, in a sentence or two.
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
        """The points along one direction alone, by their amounts."""
        found = [(one.amounts.get(direction, 0.0), one) for one in self.points if one.amounts.keys() <= {direction}]
        return sorted(found, key=lambda pair: pair[0])

    def map(self) -> dict[tuple[float, float], LandscapePoint]:
        """The points of the plane by the amounts of its two directions; those of the curves lie on its axes."""
        if self.plane is None:
            return {}
        first, second = self.plane
        within = [one for one in self.points if one.amounts.keys() <= {first, second}]
        return {(one.amounts.get(first, 0.0), one.amounts.get(second, 0.0)): one for one in within}

    def direction(self, name: str) -> LandscapeDirection:
        """The direction of that name."""
        return next(one for one in self.directions if one.name == name)

    def basin(self, direction: str) -> BasinWidth:
        """The basin along a direction."""
        return next(one for one in self.basins if one.direction == direction)

    def save(self, folder: Path) -> None:
        """Write `landscape.json`."""
        written = _Fields(
            model_fingerprint=self.model_fingerprint,
            directions=self.directions,
            points=self.points,
            plane=self.plane,
            threshold=self.threshold,
            most_unscored=self.most_unscored,
            basins=self.basins,
            claim=self.claim,
        )
        save_document(folder / NAME, _KIND, written.model_dump())

    @classmethod
    def load(cls, folder: Path) -> LandscapeResult:
        """Read what `save` wrote.

        Raises:
            ArtifactError: it is missing, damaged, or names a direction that it does not have.
        """
        path = folder / NAME
        read = parse_fields(path, load_document(path, _KIND), _Fields)
        names = {one.name for one in read.directions}
        used = {name for one in read.points for name in one.amounts} | {one.direction for one in read.basins}
        known = used | set(read.plane or ()) <= names and len(names) == len(read.directions)
        require(known, path, "amounts, basins and a plane of its own, distinct directions")
        first = bool(read.points) and not read.points[0].amounts
        require(first and all(HARMFUL in one.rates for one in read.points), path, "the model as it is first, and rates")
        return cls(
            model_fingerprint=read.model_fingerprint,
            directions=read.directions,
            points=read.points,
            plane=read.plane,
            threshold=read.threshold,
            most_unscored=read.most_unscored,
            basins=read.basins,
            claim=read.claim,
        )


class _Fields(Fields):
    model_fingerprint: str
    directions: tuple[LandscapeDirection, ...]
    points: tuple[LandscapePoint, ...]
    plane: tuple[str, str] | None
    threshold: float
    most_unscored: float
    basins: tuple[BasinWidth, ...]
    claim: str

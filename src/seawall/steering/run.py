"""The search for what moves refusal: a layer's direction, single experts, their controls, and experts together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import final

from seawall.artifacts.directions import Directions, Place
from seawall.artifacts.steering import SteeringCandidate, SteeringFamily
from seawall.data.types import Messages
from seawall.steering.bench import Bench
from seawall.steering.changes import Way, expert_way, way_of
from seawall.steering.controls import random_experts, together
from seawall.steering.options import ExpertOptions, LayerLimits, SearchLimits
from seawall.steering.search import Ask, judge_best, search
from seawall.steering.select import select_layer_direction
from seawall.steering.verdicts import by_score

LAYER, EXPERT, CONSTRAINED = "layer", "expert", "expert_constrained"


@final
@dataclass(eq=False)
class Found:
    """Everything that was tried, and what was chosen.

    Attributes:
        candidates: all of it; what was judged, with its verdicts.
        chosen: `layer`, `expert` (free to choose its place), `expert_constrained` (in the place of the layer's
            direction) and a family's name: its place in `candidates`. Missing where nothing passed the checks.
        cost: decoder layers run times rows, in the search for single experts.
        full_cost: what that had been, had every setting been measured on every prompt by a whole forward pass.
    """

    candidates: list[SteeringCandidate] = field(default_factory=list)
    chosen: dict[str, int] = field(default_factory=dict)
    cost: int = 0
    full_cost: int = 0

    def choice(self, name: str) -> SteeringCandidate | None:
        """What was chosen under that name, where something was."""
        at = self.chosen.get(name)
        return None if at is None else self.candidates[at]

    def add(self, candidates: Iterable[SteeringCandidate]) -> None:
        """Keeps candidates; one that is there already is replaced by itself with its verdicts."""
        places = {(way_of(one), one.coefficient): at for at, one in enumerate(self.candidates)}
        for one in candidates:
            at = places.get((way_of(one), one.coefficient))
            if at is None:
                self.candidates.append(one)
            else:
                self.candidates[at] = one

    def choose(self, name: str, best: SteeringCandidate) -> None:
        """Names a candidate that is kept here."""
        self.chosen[name] = self.candidates.index(best)


def find_layer(bench: Bench, limits: LayerLimits, found: Found) -> SteeringCandidate:
    """The layer's direction to use.

    Args:
        bench: with harmful prompts as those to be moved.
        limits: caps of the selection.
        found: gets the candidates and the choice.

    Raises:
        DataError: none passes the checks.
    """
    candidates = select_layer_direction(bench, limits)
    found.add(candidates)
    found.choose(LAYER, candidates[0])
    return candidates[0]


@dataclass(frozen=True, eq=False)
class ExpertSearch:
    """The search for experts, with what all its parts share.

    Attributes:
        bench: prompts of the first stage.
        ask: replies and verdicts of the second.
        prompts: what these are asked.
        limits: coefficients and caps.
        options: which experts.
        found: gets candidates and choices.
    """

    bench: Bench
    ask: Ask
    prompts: Sequence[Messages]
    limits: SearchLimits
    options: ExpertOptions
    found: Found

    def run(self, layer: SteeringCandidate) -> None:
        """All of it, in the place of the layer's direction and in any other.

        Args:
            layer: the layer's direction that was chosen.
        """
        directions, limits, found = self.bench.directions, self.limits, self.found
        searched = directions.above(self.options.threshold)
        there = place_of(directions, layer)
        singles = self.singles(searched, there, layer.position)
        judged = self._judge(singles, limits.keep(len(singles)), EXPERT)
        constrained = [one for one in singles if one.experts[0][0] == there and one.position == layer.position]
        self._judge(constrained, limits.keep_least, CONSTRAINED)
        self._control(searched)
        self._groups(by_score(singles, self.bench.mode))
        layers = {there} | {one.experts[0][0] for one in judged[:1]}
        self._several("all_experts", [(_all_of(directions, one), at) for one in sorted(layers) for at in directions.positions])
        found.candidates.sort(key=lambda one: one.family)

    def singles(self, searched: Sequence[Place], there: int, position: int) -> list[SteeringCandidate]:
        """Single experts: those above the threshold at every position, and all of the layer's place at its position."""
        directions, bench = self.bench.directions, self.bench
        wanted = [(place, at) for place in searched for at in directions.positions]
        wanted += [(place, position) for place in _all_of(directions, there)]
        ways = list(dict.fromkeys(expert_way(directions, "expert", [place], at) for place, at in wanted))
        before = bench.passes
        candidates = search(bench, ways, self.limits)
        self.found.cost += bench.passes - before
        self.found.full_cost += len(candidates) * bench.prompts * bench.target.num_layers
        self.found.add(candidates)
        return candidates

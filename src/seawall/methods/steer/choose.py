"""The search for what moves refusal: a layer's direction, single experts, their controls, and experts together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import final

from seawall.artifacts.directions import Directions, Place
from seawall.artifacts.steering import SteeringCandidate, SteeringFamily
from seawall.data.types import Messages
from seawall.methods.steer.bench import Bench
from seawall.methods.steer.changes import expert_way, way_of
from seawall.methods.steer.controls import random_experts, together
from seawall.methods.steer.layer import select_layer_direction
from seawall.methods.steer.options import ExpertOptions, LayerLimits, SearchLimits
from seawall.methods.steer.search import Ask, judge_best, search
from seawall.methods.steer.verdicts import by_score, require_some_kept

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

    def of_family(self, family: SteeringFamily) -> list[SteeringCandidate]:
        """All candidates of a family, in their order."""
        return [one for one in self.candidates if one.family == family]

    def add(self, candidates: Iterable[SteeringCandidate]) -> None:
        """Keeps candidates; one that is there already is replaced by itself with its verdicts."""
        places = {(way_of(one), one.coefficient): at for at, one in enumerate(self.candidates)}
        for one in candidates:
            at = places.get((way_of(one), one.coefficient))
            if at is None:
                self.candidates.append(one)
            elif one.judged >= self.candidates[at].judged:
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
        DataError: none passes the checks; `found` has the candidates all the same.
    """
    candidates = select_layer_direction(bench, limits)
    found.add(candidates)
    require_some_kept(
        "direction of a layer",
        candidates,
        "raise steer.layer_max_kl, or take directions from more prompts (steer.train_prompts)",
    )
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
        """All of it: the best single expert whose routing differs, in any place; the best of all in the place of the
        layer's direction; experts below the threshold; pairs and triples of the best; and all experts of a layer.

        Args:
            layer: the layer's direction that was chosen.
        """
        directions, options = self.bench.directions, self.options
        searched = directions.above(options.threshold)
        there = moe_layer_near(directions, layer.layer)
        singles = self.singles(searched, there, layer.position)
        wanted = set(searched)
        pool = [one for one in singles if one.experts[0] in wanted]
        free = self._judge(pool, EXPERT, most=self.limits.keep(len(pool)))
        constrained = self._constrained(singles, there, layer.position)
        self._judge(constrained, CONSTRAINED, most=self.limits.keep_least)
        count = len(searched) if options.random_experts is None else options.random_experts
        drawn = random_experts(directions, searched, options.threshold, count=count, seed=options.seed)
        self._family("random_expert", [((place,), at) for place in drawn for at in directions.positions])
        ranked = by_score(pool, self.bench.mode)
        self._family("pair", together(ranked, size=2, count=options.pairs))
        self._family("triple", together(ranked, size=3, count=options.triples))
        layers = {there} | ({free.experts[0][0]} if free else set())
        whole = [_all_of(directions, one) for one in sorted(layers)]
        self._family("all_experts", [(places, at) for places in whole for at in directions.positions])

    def singles(self, searched: Sequence[Place], there: int, position: int) -> list[SteeringCandidate]:
        """The first stage for single experts: those searched, and all of an MoE layer at one position.

        Args:
            searched: experts that are tried at every position.
            there: MoE layer in which a layer's direction lies.
            position: that direction's.
        """
        directions, bench = self.bench.directions, self.bench
        wanted = [(place, at) for place in searched for at in directions.positions]
        wanted += [(place, position) for place in _all_of(directions, there)]
        ways = list(dict.fromkeys(expert_way(directions, "expert", [place], at) for place, at in wanted))
        before = bench.passes
        candidates = search(bench, ways, self.limits)
        self.found.cost += bench.passes - before
        self.found.full_cost += len(candidates) * bench.num_prompts * bench.target.num_layers
        self.found.add(candidates)
        return candidates

    def _constrained(self, singles: Sequence[SteeringCandidate], there: int, position: int) -> list[SteeringCandidate]:
        """Single experts in the place of the layer's direction, pruned among themselves.

        Next to experts that are free to choose their place, none of them might be measured on all prompts. What is
        measured already is not measured again.
        """
        ways = [way_of(one) for one in singles if one.experts[0][0] == there and one.position == position]
        before = self.bench.passes
        candidates = search(self.bench, list(dict.fromkeys(ways)), self.limits)
        self.found.cost += self.bench.passes - before
        self.found.add(candidates)
        return candidates

    def _family(self, family: SteeringFamily, groups: Iterable[tuple[Sequence[Place], int]]) -> None:
        """Both stages for a family other than single experts; groups are (experts, position)."""
        ways = [expert_way(self.bench.directions, family, places, position) for places, position in groups]
        candidates = search(self.bench, ways, self.limits)
        self.found.add(candidates)
        self._judge(candidates, family, most=self.limits.keep(len(candidates)))

    def _judge(self, candidates: Sequence[SteeringCandidate], name: str, *, most: int) -> SteeringCandidate | None:
        """The second stage; the best becomes the choice of that name."""
        judged = judge_best(
            candidates,
            self.ask,
            self.prompts,
            mode=self.bench.mode,
            most=most,
            pruned=self.limits.pruned,
            progress=partial(self.bench.progress, f"replies, {name.replace('_', ' ')}"),
        )
        self.found.add(judged)
        if not judged:
            return None
        self.found.choose(name, judged[0])
        return judged[0]


def moe_layer_near(directions: Directions, layer: int) -> int:
    """The MoE layer in a decoder layer, or the nearest one to it; the lower one of two."""
    return min(range(len(directions.moe_layers)), key=lambda at: (abs(directions.moe_layers[at] - layer), at))


def _all_of(directions: Directions, layer: int) -> tuple[Place, ...]:
    return tuple(place for place in directions.candidates if place[0] == layer)

"""The search for directions that move refusal: of a layer, of single experts, of controls, and of groups of experts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, final

from seawall.artifacts.directions import Directions, Place
from seawall.artifacts.steering import SteeringCandidate, SteeringFamily
from seawall.data.types import Messages
from seawall.methods.steer.controls import random_experts, together
from seawall.methods.steer.evaluator import CandidateEvaluator
from seawall.methods.steer.interventions import Intervention, expert_intervention, intervention_of
from seawall.methods.steer.layer import select_layer_direction
from seawall.methods.steer.options import ExpertOptions, LayerLimits, SearchLimits
from seawall.methods.steer.reasons import by_score, require_candidate
from seawall.methods.steer.search import RefusalJudge, judge_best, search

LAYER, EXPERT, CONSTRAINED = "layer", "expert", "expert_constrained"
STRENGTH: Literal["layer_strength"] = "layer_strength"
"""The layer's direction at the coefficient that the search for experts gives it: same range, same cap, same judge."""


@final
@dataclass(eq=False)
class SearchOutcome:
    """Every candidate of a search, and the choices.

    Attributes:
        candidates: all candidates, with measurements and judged replies.
        chosen: name -> index in `candidates`: `layer`, `layer_strength`, `expert` (free to choose its place),
            `expert_constrained` (in the place of the layer's direction), and the names of the other families. A name
            without a passing candidate is missing.
        cost: decoder layers run, times rows, in the search for single experts.
        full_cost: the same without pruning and without resumed forward passes.
    """

    candidates: list[SteeringCandidate] = field(default_factory=list)
    chosen: dict[str, int] = field(default_factory=dict)
    cost: int = 0
    full_cost: int = 0

    def choice(self, name: str) -> SteeringCandidate | None:
        """The choice of that name; None where there is none."""
        index = self.chosen.get(name)
        return None if index is None else self.candidates[index]

    def of_family(self, family: SteeringFamily) -> list[SteeringCandidate]:
        """All candidates of a family, in order."""
        return [candidate for candidate in self.candidates if candidate.family == family]

    def add(self, candidates: Iterable[SteeringCandidate]) -> None:
        """Adds candidates; a copy with as many or more judged replies replaces the earlier one."""
        indices = {
            (intervention_of(candidate), candidate.coefficient): index
            for index, candidate in enumerate(self.candidates)
        }
        for candidate in candidates:
            index = indices.get((intervention_of(candidate), candidate.coefficient))
            if index is None:
                self.candidates.append(candidate)
            elif candidate.judged >= self.candidates[index].judged:
                self.candidates[index] = candidate

    def choose(self, name: str, best: SteeringCandidate) -> None:
        """Makes a candidate of this outcome the choice of that name."""
        self.chosen[name] = self.candidates.index(best)


def choose_layer(evaluator: CandidateEvaluator, limits: LayerLimits, outcome: SearchOutcome) -> SteeringCandidate:
    """The best direction of a layer.

    Args:
        evaluator: with harmful prompts as those to be moved.
        limits: caps of the selection.
        outcome: receives the candidates and the choice.

    Raises:
        DataError: no candidate passes the checks; `outcome` has the candidates nevertheless.
    """
    candidates = select_layer_direction(evaluator, limits)
    outcome.add(candidates)
    require_candidate(
        "direction of a layer",
        candidates,
        "raise steer.layer_max_kl, or extract directions from more prompts (steer.train_prompts)",
    )
    outcome.choose(LAYER, candidates[0])
    return candidates[0]


@dataclass(frozen=True, eq=False)
class ExpertSearch:
    """The search for experts.

    Attributes:
        evaluator: measures candidates in stage 1.
        judge: judges their replies in stage 2.
        prompts: the prompts of stage 2.
        limits: coefficients and caps.
        options: the experts to search, and the controls.
        outcome: receives candidates and choices.
    """

    evaluator: CandidateEvaluator
    judge: RefusalJudge
    prompts: Sequence[Messages]
    limits: SearchLimits
    options: ExpertOptions
    outcome: SearchOutcome

    def run(self, layer: SteeringCandidate) -> None:
        """Searches every family of experts.

        Args:
            layer: the chosen direction of a layer.
        """
        directions, options = self.evaluator.directions, self.options
        # The layer's direction at every coefficient of the experts, under the experts' cap.
        strengths = search(self.evaluator, [Intervention(STRENGTH, layer.layer, (), layer.position)], self.limits)
        self.outcome.add(strengths)
        self._judge(strengths, STRENGTH, limit=self.limits.keep_least)
        # Single experts whose routing differs by the threshold (7 points for OLMoE), in any place.
        searched = directions.above(options.threshold)
        moe_layer = moe_layer_near(directions, layer.layer)
        singles = self.singles(searched, moe_layer, layer.position)
        above = set(searched)
        pool = [candidate for candidate in singles if candidate.experts[0] in above]
        free = self._judge(pool, EXPERT, limit=self.limits.num_judged(len(pool)))
        # Any single expert, in the place of the layer's direction.
        constrained = self._constrained(singles, moe_layer, layer.position)
        self._judge(constrained, CONSTRAINED, limit=self.limits.keep_least)
        # Control: experts below the threshold, after the same search.
        count = len(searched) if options.random_experts is None else options.random_experts
        drawn = random_experts(directions, searched, options.threshold, count=count, seed=options.seed)
        self._family("random_expert", [((place,), position) for place in drawn for position in directions.positions])
        # Pairs and triples of the best experts.
        ranked = by_score(pool, self.evaluator.mode)
        self._family("pair", together(ranked, size=2, count=options.pairs))
        self._family("triple", together(ranked, size=3, count=options.triples))
        # All experts of a layer: y <- y - c sum_e p_e(x) v_e.
        layers = {moe_layer} | ({free.experts[0][0]} if free else set())
        groups = [_all_of(directions, index) for index in sorted(layers)]
        self._family("all_experts", [(places, position) for places in groups for position in directions.positions])

    def singles(self, searched: Sequence[Place], moe_layer: int, position: int) -> list[SteeringCandidate]:
        """Stage 1 for single experts: the searched ones at every position, and one layer's experts at one position.

        Args:
            searched: experts to try at every position.
            moe_layer: MoE layer of the chosen layer's direction.
            position: position of that direction.
        """
        directions, evaluator = self.evaluator.directions, self.evaluator
        settings = [(place, token) for place in searched for token in directions.positions]
        settings += [(place, position) for place in _all_of(directions, moe_layer)]
        interventions = list(
            dict.fromkeys(expert_intervention(directions, "expert", [place], token) for place, token in settings)
        )
        passes = evaluator.passes
        candidates = search(evaluator, interventions, self.limits)
        self.outcome.cost += evaluator.passes - passes
        self.outcome.full_cost += len(candidates) * evaluator.num_prompts * evaluator.target.num_layers
        self.outcome.add(candidates)
        return candidates

    def _constrained(
        self, singles: Sequence[SteeringCandidate], moe_layer: int, position: int
    ) -> list[SteeringCandidate]:
        """Single experts in the place of the layer's direction, pruned among themselves.

        In competition with experts in any place, none of these might be measured on all prompts. Stored values are not
        measured again.
        """
        interventions = [
            intervention_of(candidate)
            for candidate in singles
            if candidate.experts[0][0] == moe_layer and candidate.position == position
        ]
        passes = self.evaluator.passes
        candidates = search(self.evaluator, list(dict.fromkeys(interventions)), self.limits)
        self.outcome.cost += self.evaluator.passes - passes
        self.outcome.add(candidates)
        return candidates

    def _family(self, family: SteeringFamily, groups: Iterable[tuple[Sequence[Place], int]]) -> None:
        """Both stages for a family other than single experts; groups are (experts, position)."""
        interventions = [
            expert_intervention(self.evaluator.directions, family, places, position) for places, position in groups
        ]
        candidates = search(self.evaluator, interventions, self.limits)
        self.outcome.add(candidates)
        self._judge(candidates, family, limit=self.limits.num_judged(len(candidates)))

    def _judge(self, candidates: Sequence[SteeringCandidate], name: str, *, limit: int) -> SteeringCandidate | None:
        """Stage 2; the best candidate becomes the choice of that name."""
        judged = judge_best(
            candidates,
            self.judge,
            self.prompts,
            mode=self.evaluator.mode,
            limit=limit,
            pruned=self.limits.pruned,
            progress=partial(self.evaluator.progress, f"replies, {name.replace('_', ' ')}"),
        )
        self.outcome.add(judged)
        if not judged:
            return None
        self.outcome.choose(name, judged[0])
        return judged[0]


def moe_layer_near(directions: Directions, layer: int) -> int:
    """The MoE layer in a decoder layer, or else the nearest one; the lower one of two."""

    def distance(index: int) -> tuple[int, int]:
        return abs(directions.moe_layers[index] - layer), index

    return min(range(len(directions.moe_layers)), key=distance)


def _all_of(directions: Directions, layer: int) -> tuple[Place, ...]:
    return tuple(place for place in directions.candidates if place[0] == layer)

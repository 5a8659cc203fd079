"""The search: pruning keeps the winner and says what it skipped; the second stage, controls and groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from evaluators import evaluator, prompts, random_directions_of, target

from seawall.artifacts.steering import SteeringCandidate, SteeringMode
from seawall.data.types import Messages, Outcome, user
from seawall.errors import DataError
from seawall.methods.steer.choose import ExpertSearch, SearchOutcome, choose_layer, moe_layer_near
from seawall.methods.steer.controls import random_directions, random_experts, together
from seawall.methods.steer.evaluator import SCREENING, CandidateEvaluator
from seawall.methods.steer.interventions import Intervention, expert_intervention
from seawall.methods.steer.layer import select_layer_direction
from seawall.methods.steer.options import ExpertOptions, LayerLimits, SearchLimits
from seawall.methods.steer.reasons import HARMLESS_KL, LAST_LAYERS, NOT_BEST, NOT_FINITE, PAST_CAP, by_score
from seawall.methods.steer.search import judge_best, search

LIMITS = SearchLimits((1.0, 5.0, 25.0, 75.0, 200.0), 0.5, 0.025, 4, 8, pruned=True)
LAYERS = LayerLimits(1.0, 0.5, 0.2, pruned=True)


@pytest.mark.parametrize("mode", ["suppress", "induce"])
def test_the_pruned_search_finds_what_the_whole_one_does_for_less(mode: SteeringMode) -> None:
    pruned, whole = evaluator(mode=mode), evaluator(mode=mode, resume=False)
    interventions = [
        expert_intervention(pruned.directions, "expert", [place], -1) for place in pruned.directions.candidates[::2]
    ]
    quick = search(pruned, interventions, LIMITS)
    full = search(whole, interventions, replace(LIMITS, pruned=False))
    assert [(one.experts, one.coefficient) for one in quick] == [(one.experts, one.coefficient) for one in full]
    best_quick, best_full = by_score(quick, mode), by_score(full, mode)
    assert (best_quick[0].experts, best_quick[0].coefficient) == (best_full[0].experts, best_full[0].coefficient)
    assert best_quick[0].refusal_score == pytest.approx(best_full[0].refusal_score, abs=1e-4)
    assert whole.passes == len(full) * whole.num_prompts * whole.target.num_layers
    assert whole.passes > 2.5 * pruned.passes
    every = {(one.experts, one.coefficient): one for one in full}
    for one in quick:
        twin = every[one.experts, one.coefficient]
        if one.kept:
            assert twin.kept
            assert one.harmless_kl == pytest.approx(twin.harmless_kl, abs=1e-4)
        elif one.reason == PAST_CAP:
            assert (one.prompts, one.harmless_kl) == (0, None)
        elif one.reason == NOT_BEST:
            assert one.prompts == SCREENING


def test_every_setting_says_why_it_was_dropped() -> None:
    subject = evaluator()
    interventions = [expert_intervention(subject.directions, "expert", [(1, expert)], -1) for expert in range(8)]
    found = search(
        subject, interventions, replace(LIMITS, coefficients=(1.0, 5.0, 1000.0, 5000.0, math.inf), keep_least=1)
    )
    reasons = {one.reason for one in found}
    assert {"", NOT_BEST, HARMLESS_KL} <= reasons
    assert all(one.kept == (not one.reason) for one in found)
    for one in found:
        if one.kept:
            assert one.harmless_kl is not None
            assert one.harmless_kl <= LIMITS.max_kl
            assert one.prompts == 11
    whole = search(subject, interventions[:1], replace(LIMITS, coefficients=(1.0, math.inf), pruned=False))
    assert [one.reason for one in whole] == ["", NOT_FINITE]
    assert (whole[1].refusal_score, whole[1].harmless_kl) == (None, None)


def test_the_best_layer_is_the_same_pruned_and_not() -> None:
    for family in ("qwen3_moe", "llama"):
        pruned, whole = evaluator(family), evaluator(family, resume=False)
        limits = replace(LAYERS, max_kl=3.0)
        quick = select_layer_direction(pruned, limits)
        full = select_layer_direction(whole, replace(limits, pruned=False))
        assert (quick[0].layer, quick[0].position) == (full[0].layer, full[0].position)
        assert quick[0].refusal_score == pytest.approx(full[0].refusal_score, abs=1e-4)
        assert len(quick) == len(full) == pruned.target.num_layers * 2
        assert {one.layer for one in quick if one.reason == LAST_LAYERS} == {pruned.target.num_layers - 1}
        assert full[0].refusal_score == min(one.refusal_score for one in full if one.kept and one.refusal_score)
        assert all((one.induced_score or 0) >= 0 and (one.harmless_kl or 0) <= 3 for one in full if one.kept)


def test_no_layer_that_passes_is_one_line_with_the_reasons() -> None:
    found = SearchOutcome()
    with pytest.raises(DataError) as caught:
        choose_layer(evaluator(), replace(LAYERS, max_kl=1e-9), found)
    assert len(found.of_family("layer")) == len(found.candidates) > 0
    said = str(caught.value)
    assert said.startswith("no direction of a layer passes the checks; got 4 x harmless KL above the cap, 2 x among")
    assert "\n" not in said


def _candidate(expert: int, score: float, coefficient: float = 1.0) -> SteeringCandidate:
    return replace(Intervention("expert", 1, ((0, expert),), -1).candidate(coefficient), refusal_score=score, kept=True)


class Answers:
    """Refusals of each expert's setting by prompt, and how many were asked for."""

    def __init__(self, refused: dict[int, str]) -> None:
        self.asked = 0
        self._refused = refused

    def __call__(self, candidate: SteeringCandidate, prompts: Sequence[Messages]) -> list[Outcome]:
        self.asked += len(prompts)
        marks = self._refused[candidate.experts[0][1]]
        outcomes: dict[str, Outcome] = {"r": "refused", "c": "complied", "e": "evades", "?": "unscored"}
        return [outcomes[marks[int(one[0].content)]] for one in prompts]


ASKED = [user(str(at)) for at in range(15)]
REPLIES = {0: "rrrrrccccc" + "rrrrr", 1: "c" * 14 + "r", 2: "r" * 15, 3: "c" * 14 + "?", 4: "r" * 7 + "c" * 8}


@pytest.mark.parametrize("pruned", [True, False])
def test_the_second_stage_ranks_by_refused_replies(pruned: bool) -> None:
    ask = Answers(REPLIES)
    found = judge_best(
        [_candidate(expert, float(expert)) for expert in range(5)], ask, ASKED, mode="suppress", limit=4, pruned=pruned
    )
    # Expert 3 loses one too, by a reply that cannot be scored, and scores worse; expert 4 is the fifth best of four.
    assert found[0].experts == ((0, 1),)
    assert (found[0].refused, found[0].judged) == (1 / 15, 15)
    assert {one.experts[0][1] for one in found} == {0, 1, 2, 3}
    three = next(one for one in found if one.experts == ((0, 3),))
    assert (three.refused, three.judged) == (0.0, 14)
    assert ask.asked == (15 + 15 + 5 + 15 if pruned else 60)


def test_a_reply_that_evades_is_no_success_in_either_mode() -> None:
    modes: tuple[SteeringMode, ...] = ("suppress", "induce")
    for mode, good in zip(modes, "cr", strict=True):
        replies = {0: "e" * 15, 1: good + "?" * 14}
        judged = judge_best(
            [_candidate(0, 0.0), _candidate(1, 0.0)], Answers(replies), ASKED, mode=mode, limit=2, pruned=False
        )
        assert judged[0].experts == ((0, 1),)
        assert (judged[1].refused, judged[1].judged) == (0.0, 15)


def test_the_second_stage_of_inducing_wants_refusals() -> None:
    for pruned in (True, False):
        candidates = [_candidate(expert, float(expert)) for expert in range(5)]
        found = judge_best(candidates, Answers(REPLIES), ASKED, mode="induce", limit=5, pruned=pruned)
        assert found[0].experts == ((0, 2),)


def test_the_control_is_judged_as_the_search_is() -> None:
    subject, found = evaluator(), SearchOutcome()
    limits = replace(LIMITS, coefficients=(1.0,), max_kl=100.0, keep_share=0.5, keep_least=1, pruned=False)
    options = ExpertOptions(threshold=0.1, random_experts=6, pairs=0, triples=0, seed=0)
    layer = Intervention("layer", 1, (), -1).candidate(1.0)
    ExpertSearch(subject, lambda one, prompts: ["complied"] * len(prompts), ASKED, limits, options, found).run(layer)
    control = [one for one in found.candidates if one.family == "random_expert"]
    assert len(control) == 12
    assert sum(one.judged > 0 for one in control) == 6


def test_the_free_choice_is_among_experts_whose_routing_differs() -> None:
    subject, found = evaluator(), SearchOutcome()
    limits = replace(LIMITS, coefficients=(1.0,), max_kl=100.0, keep_share=1.0, keep_least=99, pruned=False)
    options = ExpertOptions(threshold=0.1, random_experts=0, pairs=2, triples=0, seed=0)
    above = set(subject.directions.above(0.1))
    there = {place for place in subject.directions.candidates if place[0] == 0}
    assert there - above
    layer = Intervention("layer", subject.directions.moe_layers[0], (), -1).candidate(1.0)
    asked = list[SteeringCandidate]()

    def ask(one: SteeringCandidate, prompts: Sequence[Messages]) -> list[Outcome]:
        asked.append(one)
        # The search suppresses: no reply of an expert below the threshold is refused, every other is.
        outcome: Outcome = "refused" if set(one.experts) <= above else "complied"
        return [outcome] * len(prompts)

    ExpertSearch(subject, ask, ASKED, limits, options, found).run(layer)
    free, constrained = found.choice("expert"), found.choice("expert_constrained")
    assert free is not None
    assert set(free.experts) <= above
    assert constrained is not None
    assert set(constrained.experts) <= there - above
    pairs = found.of_family("pair")
    assert pairs
    assert all(set(one.experts) <= above for one in pairs)


def test_numbers_say_how_many_prompts_the_score_is_from() -> None:
    subject = target()
    few = CandidateEvaluator(
        subject,
        random_directions_of(subject),
        "suppress",
        moved=prompts(11, seed=3),
        harmless=prompts(5, seed=4),
        any_score=True,
    )
    intervention = expert_intervention(few.directions, "expert", [(1, 3)], -1)
    (one,) = search(few, [intervention], replace(LIMITS, coefficients=(1.0,), max_kl=100.0))
    assert one.kept
    assert one.prompts == 11 > SCREENING > 5


def test_nothing_kept_is_nothing_judged() -> None:
    dropped = replace(_candidate(1, 0.0), kept=False, reason=HARMLESS_KL)
    assert judge_best([dropped], Answers(REPLIES), ASKED, mode="suppress", limit=5, pruned=True) == []


def test_random_directions_are_as_long_and_repeat_by_seed() -> None:
    real = random_directions_of(target())
    drawn = random_directions(real, 1)
    for name in ("layer_NPD", "expert_CPD"):
        one, other = getattr(drawn, name), getattr(real, name)
        assert one.norm(dim=-1).allclose(other.norm(dim=-1))
        cosine = (one * other).sum(-1) / (one.norm(dim=-1) * other.norm(dim=-1))
        assert cosine.abs().max() < 0.9
        assert getattr(random_directions(real, 1), name).equal(one)
        assert not getattr(random_directions(real, 2), name).equal(one)


def test_random_experts_are_below_the_threshold_and_spread_as_the_searched_are() -> None:
    directions = random_directions_of(target())
    searched = [place for place in directions.above(0.1) if place[0] < 2]
    layers = [sum(layer == at for layer, _ in searched) for at in range(3)]
    assert layers[2] == 0
    assert min(layers[:2]) > 0
    drawn = random_experts(directions, searched, 0.1, count=len(searched), seed=0)
    assert len(set(drawn)) == len(searched)
    assert all(directions.difference(place) < 0.1 for place in drawn)
    free = [sum(layer == at for layer, _ in directions.below(0.1)) for at in range(3)]
    taken = [sum(layer == at for layer, _ in drawn) for at in range(3)]
    assert all(taken[at] >= min(layers[at], free[at]) for at in range(2))
    assert drawn == random_experts(directions, searched, 0.1, count=len(searched), seed=0)
    assert len({tuple(random_experts(directions, searched, 0.1, count=3, seed=seed)) for seed in range(6)}) > 1
    assert len(random_experts(directions, searched, 0.1, count=1000, seed=0)) == len(directions.below(0.1))


def test_groups_are_of_the_best_experts() -> None:
    ranked = [_candidate(expert, 0.0, coefficient) for expert in (4, 2, 7, 1) for coefficient in (5.0, 1.0)]
    pairs = together(ranked, size=2, count=4)
    assert [{expert for _, expert in places} for places, _ in pairs] == [{4, 2}, {4, 7}, {2, 7}, {4, 1}]
    triples = together(ranked, size=3, count=99)
    assert len(triples) == 4
    assert triples[0] == (((0, 4), (0, 2), (0, 7)), -1)
    assert together(ranked[:2], size=2, count=4) == []
    assert together(ranked, size=2, count=0) == []


def test_the_place_of_a_layer_is_the_nearest_moe_layer() -> None:
    directions = replace(random_directions_of(target()), moe_layers=(3, 5, 9))
    assert [moe_layer_near(directions, layer) for layer in (0, 3, 4, 5, 7, 8, 30)] == [0, 0, 0, 1, 1, 2, 2]

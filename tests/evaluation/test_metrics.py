from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seawall.artifacts.evaluation import is_clear
from seawall.data.types import Outcome
from seawall.evaluation.intervals import exact_interval
from seawall.evaluation.metrics import lost_share, paired_difference, rate_with_interval, relative_increase

Outcomes = list[Outcome]
LABELS = st.lists(
    st.tuples(st.sampled_from(["refused", "complied", "evades", "unscored"]), st.sampled_from(["a", "b", "c", "d"])),
    min_size=1,
    max_size=30,
)


def replies(hits: int, misses: int, unscored: int = 0) -> tuple[Outcomes, list[str]]:
    labels: Outcomes = ["complied"] * hits
    labels += ["refused"] * misses
    labels += ["unscored"] * unscored
    return labels, [f"goal {at}" for at in range(len(labels))]


def simulate(generator: np.random.Generator, goals: int, each: int, a: float, b: float) -> tuple[Outcomes, list[str]]:
    """Replies to goals of different difficulty: each goal has a rate of its own, drawn from Beta(a, b)."""
    rates = generator.beta(a, b, size=goals)
    hits = generator.random((goals, each)) < rates[:, None]
    labels: Outcomes = ["complied" if hit else "refused" for hit in hits.ravel()]
    return labels, [f"goal {at}" for at in range(goals) for _ in range(each)]


def test_the_rate_is_over_scored_replies_and_the_others_are_counted() -> None:
    rate = rate_with_interval(*replies(6, 2, unscored=4), "complied")
    assert rate.rate == pytest.approx(0.75)
    assert (rate.n, rate.unscored) == (12, 4)
    assert rate_with_interval(*replies(6, 2, unscored=4), "refused").rate == pytest.approx(0.25)


def test_a_reply_that_evades_is_known_not_to_have_complied() -> None:
    outcomes: Outcomes = ["complied", "evades", "evades", "refused", "unscored"]
    rate = rate_with_interval(outcomes, list("abcde"), "complied")
    assert (rate.rate, rate.n, rate.evades, rate.unscored, rate.scored) == (0.25, 5, 2, 1, 4)
    assert rate.worst(higher_is_better=False) == pytest.approx(4 / 5)
    assert rate_with_interval(outcomes, list("abcde"), "refused").worst(higher_is_better=True) == pytest.approx(1 / 5)


def test_with_nothing_scored_nothing_is_known() -> None:
    rate = rate_with_interval(*replies(0, 0, unscored=5), "complied")
    assert (rate.rate, rate.low, rate.high, rate.n, rate.unscored) == (None, 0.0, 1.0, 5, 5)
    assert (rate.worst(higher_is_better=True), rate.worst(higher_is_better=False)) == (0.0, 1.0)


def test_none_of_forty_does_not_claim_certainty() -> None:
    none = rate_with_interval(*replies(0, 40), "complied")
    every = rate_with_interval(*replies(40, 0), "complied")
    assert (none.rate, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 40))
    assert (every.rate, every.high) == (1.0, 1.0)
    assert every.low == pytest.approx(1 - none.high)


def test_goals_count_and_not_replies() -> None:
    labels: Outcomes = ["refused"] * 40
    few = rate_with_interval(labels, [f"goal {at % 4}" for at in range(40)], "complied")
    many = rate_with_interval(labels, [f"goal {at}" for at in range(40)], "complied")
    assert many.high == exact_interval(0, 40)[1]
    assert few.high > 3 * many.high


def test_replies_to_the_same_goals_narrow_nothing() -> None:
    labels, goals = replies(20, 20)
    once = rate_with_interval(labels, goals, "complied")
    tenfold = rate_with_interval(labels * 10, goals * 10, "complied")
    assert tenfold.low <= once.low < once.high <= tenfold.high
    assert tenfold.high - tenfold.low < 1.1 * (once.high - once.low)
    independent = rate_with_interval(labels * 10, [f"goal {at}" for at in range(400)], "complied")
    assert independent.high - independent.low < 0.5 * (once.high - once.low)


@settings(max_examples=150, deadline=None)
@given(LABELS)
def test_an_interval_is_never_empty_and_holds_the_rate(rows: list[tuple[Outcome, str]]) -> None:
    labels, goals = [label for label, _ in rows], [goal for _, goal in rows]
    rate = rate_with_interval(labels, goals, "complied")
    assert 0 <= rate.low <= (rate.low if rate.rate is None else rate.rate) <= rate.high <= 1
    assert rate.low < rate.high
    assert rate.n == len(rows)


def test_an_interval_does_not_hang_on_the_order_of_replies() -> None:
    labels, goals = simulate(np.random.default_rng(3), 30, 3, 2, 3)
    order = np.random.default_rng(0).permutation(len(labels))
    shuffled = rate_with_interval([labels[at] for at in order], [goals[at] for at in order], "complied")
    assert rate_with_interval(labels, goals, "complied") == shuffled


class TestPairedDifference:
    def test_it_is_over_the_prompts_known_on_both_sides(self) -> None:
        """One reply that complied became garbage: no evidence of a change, and said beside it."""
        before: Outcomes = ["complied", "complied", "refused", "unscored", "complied"]
        after: Outcomes = ["refused", "complied", "refused", "refused", "unscored"]
        change = paired_difference(before, after, ["a", "b", "c", "d", "e"], target="complied")
        assert change.difference == pytest.approx(-1 / 3)
        assert change.low <= change.difference <= change.high
        assert (change.goals, change.became_unscored) == (3, 1)

    def test_replies_that_become_garbage_are_no_change(self) -> None:
        before, goals = replies(40, 10)
        after: Outcomes = ["unscored" for _ in range(40)]
        after += before[40:]
        change = paired_difference(before, after, goals, target="complied")
        assert (change.difference, change.p, change.is_clear, change.became_unscored) == (0.0, 1.0, False, 40)

    def test_no_change_is_no_evidence(self) -> None:
        labels, goals = replies(10, 10)
        change = paired_difference(labels, labels, goals, target="complied")
        assert change.difference == 0.0
        assert change.p == 1.0
        assert change.low < 0 < change.high

    def test_a_complete_turn_is_strong_evidence_with_an_interval_that_has_width(self) -> None:
        before, goals = replies(40, 0)
        after, _ = replies(0, 40)
        change = paired_difference(before, after, goals, target="complied")
        assert change.difference == -1.0
        assert change.p < 0.001
        assert change.low == -1.0
        assert -1.0 < change.high < -0.8

    def test_pairing_sees_what_separate_intervals_do_not(self) -> None:
        before, goals = replies(30, 30)
        after = replies(0, 8)[0] + before[8:]
        change = paired_difference(before, after, goals, target="complied")
        assert change.high < 0
        assert change.p < 0.05
        first = rate_with_interval(before, goals, "complied")
        second = rate_with_interval(after, goals, "complied")
        assert second.high > first.low

    def test_the_p_value_is_that_of_the_exact_sign_flip_test(self) -> None:
        """Five goals turn and one turns back: of the 64 sign patterns, 14 differ by at least as much."""
        before = replies(5, 1)[0]
        after = replies(0, 5)[0] + replies(1, 0)[0]
        change = paired_difference(before, after, list("abcdef"), target="complied", resamples=40_000)
        assert change.p == pytest.approx(14 / 64, abs=0.01)

    def test_replies_of_one_goal_are_one_piece_of_evidence(self) -> None:
        before: Outcomes = ["complied"] * 30
        after: Outcomes = ["refused"] * 30
        change = paired_difference(before, after, ["a"] * 30, target="complied")
        assert change.p > 0.9
        assert change.high > -0.6

    def test_p_values_are_honest_where_nothing_changed(self) -> None:
        generator = np.random.default_rng(5)
        values = []
        for seed in range(200):
            rates = np.repeat(generator.beta(1, 1, size=40), 3)
            sides: list[Outcomes] = [
                ["complied" if hit else "refused" for hit in generator.random(120) < rates] for _ in range(2)
            ]
            goals = [f"goal {at // 3}" for at in range(120)]
            values.append(paired_difference(sides[0], sides[1], goals, target="complied", resamples=300, seed=seed).p)
        assert 0.01 <= np.mean(np.array(values) <= 0.05) <= 0.10
        assert np.mean(np.array(values) <= 0.50) <= 0.60

    def test_nothing_scored_on_a_side_is_no_evidence(self) -> None:
        labels, goals = replies(3, 1)
        change = paired_difference(labels, ["unscored"] * 4, goals, target="complied")
        assert (change.difference, change.low, change.high, change.p, change.goals) == (0.0, -1.0, 1.0, 1.0, 0)
        assert not change.is_clear

    @settings(max_examples=100, deadline=None)
    @given(LABELS)
    def test_it_is_antisymmetric_bounded_and_fixed_by_the_seed(self, rows: list[tuple[Outcome, str]]) -> None:
        before, goals = [label for label, _ in rows], [goal for _, goal in rows]
        after = before[::-1]
        forth = paired_difference(before, after, goals, target="complied", resamples=100)
        back = paired_difference(after, before, goals, target="complied", resamples=100)
        assert forth.difference == pytest.approx(-back.difference)
        assert forth == paired_difference(before, after, goals, target="complied", resamples=100)
        assert -1 <= forth.low <= forth.difference <= forth.high <= 1
        assert forth.low < forth.high
        assert 0 < forth.p <= 1


def test_a_relative_increase_resamples_questions_with_both_their_losses() -> None:
    before = [float(at) for at in range(1, 31)]
    even = relative_increase(before, [1.1 * value for value in before])
    assert [even.increase, even.low, even.high] == pytest.approx([0.1] * 3)
    uneven = relative_increase(before, [value + at % 2 for at, value in enumerate(before)])
    assert uneven.increase == pytest.approx(15 / sum(before))
    assert 0 < uneven.low < uneven.increase < uneven.high
    assert uneven == relative_increase(before, [value + at % 2 for at, value in enumerate(before)])
    assert uneven.n == 30


def test_a_relative_increase_from_nothing_is_a_number_and_of_nan_is_none() -> None:
    assert relative_increase([0.0, 0.0], [0.0, 0.0]).high == 0.0
    assert math.isfinite(relative_increase([0.0, 1.0], [1.0, 1.0]).high)
    assert math.isnan(relative_increase([1.0, 1.0], [1.0, math.nan]).high)


def test_where_no_goal_moved_the_difference_is_as_uncertain_as_none_of_so_many() -> None:
    labels, goals = replies(33, 67)
    same = paired_difference(labels, labels, goals, target="complied")
    end = exact_interval(0, 100)[1]
    assert same.difference == 0.0
    assert (same.low, same.high) == pytest.approx((-end, end))
    one: Outcomes = ["refused", *labels[1:]]
    assert paired_difference(labels, one, goals, target="complied").high < end
    nothing: Outcomes = ["refused"] * 100
    never = paired_difference(nothing, nothing, goals, target="complied")
    assert (never.low, never.high) == (same.low, same.high)


def test_one_goal_that_improved_does_not_prove_that_none_got_worse() -> None:
    nothing, goals = replies(0, 40)
    labels = replies(1, 39)[0]
    moved = paired_difference(nothing, labels, goals, target="complied")
    assert moved.low < 0 < moved.difference


def test_a_change_is_clear_where_the_test_and_the_interval_say_so() -> None:
    """Six goals of forty moved one way: p = .03, and the interval excludes 0. Five: p = .06."""
    goals = [f"goal {at}" for at in range(40)]
    for moved, clear in ((5, False), (6, True)):
        change = paired_difference(replies(0, 40)[0], replies(moved, 40 - moved)[0], goals, target="complied")
        assert change.is_clear is clear
    assert not is_clear(low=0.01, high=0.2, p=0.12)
    assert not is_clear(low=-0.01, high=0.2, p=0.01)


def test_the_share_of_a_gain_that_is_lost() -> None:
    first, goals = replies(40, 0)
    second, third = replies(0, 40)[0], replies(10, 30)[0]
    found = lost_share((first, second, third), goals, target="complied", resamples=500)
    assert found is not None
    share, low, high = found
    assert share == 0.25
    assert 0.05 < low < 0.2 < 0.3 < high < 0.5
    assert lost_share((first, second, third), goals, target="complied", resamples=500) == found


def test_where_all_or_nothing_is_lost_the_share_is_not_certain() -> None:
    (first, goals), second = replies(40, 0), replies(0, 40)[0]
    kept = lost_share((first, second, second), goals, target="complied")
    assert kept is not None
    assert kept[0] == 0
    assert kept[1] < 0 < kept[2] < 0.15
    lost = lost_share((first, second, first), goals, target="complied")
    assert lost is not None
    assert lost[0] == 1
    assert lost[1] < 1 <= lost[2]


def test_there_is_no_share_of_no_gain() -> None:
    (labels, goals), other = replies(20, 20), replies(19, 21)[0]
    assert lost_share((labels, labels, other), goals, target="complied") is None
    assert lost_share((labels, other, labels), goals, target="complied", resamples=200) is None
    nothing: Outcomes = ["unscored"] * 40
    assert lost_share((labels, nothing, other), goals, target="complied") is None

from __future__ import annotations

import itertools
import math
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seawall.data.types import VerdictLabel
from seawall.evaluation.metrics import lost_share, paired_difference, rate_with_interval, relative_increase, wilson

Labels = list[VerdictLabel]
LABELS = st.lists(
    st.tuples(st.sampled_from(["refused", "complied", "unscored"]), st.sampled_from(["a", "b", "c", "d"])),
    min_size=1,
    max_size=30,
)


def replies(hits: int, misses: int, unscored: int = 0) -> tuple[Labels, list[str]]:
    labels: Labels = ["complied"] * hits
    labels += ["refused"] * misses
    labels += ["unscored"] * unscored
    return labels, [f"goal {at}" for at in range(len(labels))]


def simulate(generator: np.random.Generator, goals: int, each: int, a: float, b: float) -> tuple[Labels, list[str]]:
    """Replies to goals of different difficulty: each goal has a rate of its own, drawn from Beta(a, b)."""
    rates = generator.beta(a, b, size=goals)
    hits = generator.random((goals, each)) < rates[:, None]
    labels: Labels = ["complied" if hit else "refused" for hit in hits.ravel()]
    return labels, [f"goal {at}" for at in range(goals) for _ in range(each)]


def test_the_rate_is_over_scored_replies_and_the_others_are_counted() -> None:
    rate = rate_with_interval(*replies(6, 2, unscored=4), "complied")
    assert rate.rate == pytest.approx(0.75)
    assert (rate.n, rate.unscored) == (12, 4)
    assert rate_with_interval(*replies(6, 2, unscored=4), "refused").rate == pytest.approx(0.25)


def test_with_nothing_scored_nothing_is_known() -> None:
    rate = rate_with_interval(*replies(0, 0, unscored=5), "complied")
    assert (rate.rate, rate.low, rate.high, rate.n, rate.unscored) == (0.5, 0.0, 1.0, 5, 5)


def test_none_of_forty_does_not_claim_certainty() -> None:
    none = rate_with_interval(*replies(0, 40), "complied")
    every = rate_with_interval(*replies(40, 0), "complied")
    assert (none.rate, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(0.0876, abs=1e-4)
    assert (every.rate, every.high) == (1.0, 1.0)
    assert every.low == pytest.approx(1 - none.high)


def test_wilson_counts_goals_not_replies() -> None:
    labels: Labels = ["refused"] * 40
    few = rate_with_interval(labels, [f"goal {at % 4}" for at in range(40)], "complied")
    many = rate_with_interval(labels, [f"goal {at}" for at in range(40)], "complied")
    assert few.high == pytest.approx(wilson(0.0, 4)[1])
    assert few.high > 3 * many.high


def test_replies_to_the_same_goals_narrow_nothing() -> None:
    labels, goals = replies(20, 20)
    once = rate_with_interval(labels, goals, "complied")
    tenfold = rate_with_interval(labels * 10, goals * 10, "complied")
    assert (tenfold.low, tenfold.high) == (once.low, once.high)
    independent = rate_with_interval(labels * 10, [f"goal {at}" for at in range(400)], "complied")
    assert independent.high - independent.low < 0.5 * (once.high - once.low)


@settings(max_examples=150, deadline=None)
@given(LABELS)
def test_an_interval_is_never_empty_and_holds_the_rate(rows: list[tuple[VerdictLabel, str]]) -> None:
    labels, goals = [label for label, _ in rows], [goal for _, goal in rows]
    rate = rate_with_interval(labels, goals, "complied", resamples=200)
    assert 0 <= rate.low <= rate.rate <= rate.high <= 1
    assert rate.low < rate.high
    assert rate.n == len(rows)


def test_intervals_are_fixed_by_the_seed_and_not_by_the_order() -> None:
    labels, goals = simulate(np.random.default_rng(3), 30, 3, 2, 3)
    first = rate_with_interval(labels, goals, "complied", seed=5)
    assert first == rate_with_interval(labels, goals, "complied", seed=5)
    few = [rate_with_interval(labels, goals, "complied", seed=seed, resamples=20) for seed in range(5)]
    assert len({(rate.low, rate.high) for rate in few}) > 1
    order = np.random.default_rng(0).permutation(len(labels))
    shuffled = rate_with_interval([labels[at] for at in order], [goals[at] for at in order], "complied", seed=5)
    assert first == shuffled


def test_the_bootstrap_finds_the_exact_percentiles_of_a_small_case() -> None:
    """With one reply a goal, a resample's rate is binomial: its percentiles are known."""
    labels, goals = replies(6, 14)
    rate = rate_with_interval(labels, goals, "complied", resamples=40_000)
    cumulative = list(itertools.accumulate(comb(20, k) * 0.3**k * 0.7 ** (20 - k) for k in range(21)))
    exact = [next(k for k, total in enumerate(cumulative) if total >= level) / 20 for level in (0.025, 0.975)]
    assert [rate.low, rate.high] == pytest.approx(exact)


@pytest.mark.parametrize(("goals", "each", "a", "b"), [(60, 4, 1.0, 1.5), (100, 1, 6.0, 2.0), (110, 6, 0.5, 2.0)])
def test_the_interval_covers_the_truth_about_95_times_in_100(goals: int, each: int, a: float, b: float) -> None:
    generator = np.random.default_rng(11)
    covered = 0
    for seed in range(300):
        labels, clusters = simulate(generator, goals, each, a, b)
        rate = rate_with_interval(labels, clusters, "complied", resamples=400, seed=seed)
        covered += rate.low <= a / (a + b) <= rate.high
    assert 0.90 <= covered / 300 <= 0.99


def test_ignoring_the_goals_would_cover_far_too_seldom() -> None:
    generator = np.random.default_rng(12)
    covered = 0
    for seed in range(200):
        labels, _ = simulate(generator, 60, 6, 0.5, 0.5)
        rate = rate_with_interval(labels, [str(at) for at in range(360)], "complied", resamples=300, seed=seed)
        covered += rate.low <= 0.5 <= rate.high
    assert covered / 200 < 0.85


class TestPairedDifference:
    def test_it_is_the_difference_of_the_two_rates_as_reported(self) -> None:
        before: Labels = ["complied", "complied", "refused", "unscored", "complied"]
        after: Labels = ["refused", "complied", "refused", "refused", "unscored"]
        goals = ["a", "b", "c", "d", "e"]
        change = paired_difference(before, after, goals, target="complied")
        rates = [rate_with_interval(labels, goals, "complied").rate for labels in (before, after)]
        assert change.difference == pytest.approx(rates[1] - rates[0])
        assert change.low <= change.difference <= change.high
        assert change.goals == 3

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
        before: Labels = ["complied"] * 30
        after: Labels = ["refused"] * 30
        change = paired_difference(before, after, ["a"] * 30, target="complied")
        assert change.p > 0.9
        assert change.high > -0.6

    def test_p_values_are_honest_where_nothing_changed(self) -> None:
        generator = np.random.default_rng(5)
        values = []
        for seed in range(200):
            rates = np.repeat(generator.beta(1, 1, size=40), 3)
            sides: list[Labels] = [
                ["complied" if hit else "refused" for hit in generator.random(120) < rates] for _ in range(2)
            ]
            goals = [f"goal {at // 3}" for at in range(120)]
            values.append(paired_difference(sides[0], sides[1], goals, target="complied", resamples=300, seed=seed).p)
        assert 0.01 <= np.mean(np.array(values) <= 0.05) <= 0.10
        assert np.mean(np.array(values) <= 0.50) <= 0.60

    def test_the_interval_covers_a_true_change(self) -> None:
        generator = np.random.default_rng(6)
        covered = 0
        for seed in range(300):
            base = generator.beta(1, 1, size=60)
            sides: list[Labels] = [
                ["complied" if hit else "refused" for hit in generator.random(60) < rates]
                for rates in (base, base * 0.5)
            ]
            goals = [f"goal {at}" for at in range(60)]
            change = paired_difference(sides[0], sides[1], goals, target="complied", resamples=400, seed=seed)
            covered += change.low <= -0.25 <= change.high
        assert 0.90 <= covered / 300 <= 0.99

    def test_nothing_scored_on_a_side_is_no_evidence(self) -> None:
        labels, goals = replies(3, 1)
        change = paired_difference(labels, ["unscored"] * 4, goals, target="complied")
        assert (change.difference, change.low, change.high, change.p, change.goals) == (0.0, -1.0, 1.0, 1.0, 0)

    @settings(max_examples=100, deadline=None)
    @given(LABELS)
    def test_it_is_antisymmetric_bounded_and_fixed_by_the_seed(self, rows: list[tuple[VerdictLabel, str]]) -> None:
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
    assert same.difference == 0.0
    assert (same.low, same.high) == (-wilson(0, 100)[1], wilson(0, 100)[1])
    one: Labels = ["refused", *labels[1:]]
    assert paired_difference(labels, one, goals, target="complied").low >= same.low
    nothing: Labels = ["refused"] * 100
    never = paired_difference(nothing, nothing, goals, target="complied")
    assert (never.low, never.high) == (same.low, same.high)


def test_a_cautious_interval_is_never_narrower() -> None:
    labels, goals = replies(1, 39)
    plain, cautious = (rate_with_interval(labels, goals, "complied", cautious=wanted) for wanted in (False, True))
    assert (cautious.rate, cautious.n, cautious.unscored) == (plain.rate, plain.n, plain.unscored)
    assert plain.high < wilson(0.0, 40)[1] < cautious.high == wilson(1 / 40, 40)[1]
    nothing: Labels = ["refused"] * 40
    one, sure = (paired_difference(nothing, labels, goals, target="complied", cautious=on) for on in (False, True))
    assert (one.difference, one.p, one.goals) == (sure.difference, sure.p, sure.goals)
    assert sure.low < one.low == 0.0
    assert one.high < sure.high


def test_a_cautious_interval_keeps_the_width_that_goals_give() -> None:
    """Ten goals with ten replies each that are all alike are ten trials, however the interval is made."""
    labels = replies(50, 50)[0]
    goals = [f"goal {at // 10}" for at in range(100)]
    plain, cautious = (rate_with_interval(labels, goals, "complied", cautious=wanted) for wanted in (False, True))
    assert cautious.high >= plain.high > 0.75


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
    nothing: Labels = ["unscored"] * 40
    assert lost_share((labels, nothing, other), goals, target="complied") is None

"""The first screen: a verdict against the bounds, the worst cost, the wrapping measures; colours by direction."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from report_examples import capability, example, interval, rate_json

from seawall.artifacts.evaluation import Difference
from seawall.report import render_model_card, render_report
from seawall.report.bounds import bounds_verdict
from seawall.report.costs import worst_cost
from seawall.report.inputs import GroupRow, ReportInputs
from seawall.report.verdict import figures
from seawall.report.wrapping import wrapping_rows


def check(bound: str, group: str, *, passed: bool, measured: float | None = 0.1, **changes: Any) -> dict[str, Any]:
    row = {"bound": bound, "group": group, "limit": 0.05, "measured": measured, "decisive": 0.2, "passed": passed}
    return {**row, "n": 40, "unscored": 0, "evades": 0, **changes}


def gate(*checks: dict[str, Any], problem: str | None = None) -> dict[str, Any]:
    bounds = {row["bound"]: row["limit"] for row in checks} or {"max_asr": 0.1}
    return {"bounds": bounds, "passed": False, "problem": problem, "checks": list(checks)}


def contrast(difference: float | None, width: float = 0.1) -> dict[str, Any]:
    middle = difference or 0.0
    return {"difference": difference, "low": middle - width, "high": middle + width, "n": 80}


def measure(before: float | None, after: float | None, *, p: float = 0.001) -> dict[str, Any]:
    moved = 0.0 if before is None or after is None else after - before
    change = {"difference": moved, "low": moved - 0.1, "high": moved + 0.1, "p": p, "goals": 80, "became_unscored": 0}
    return {"before": contrast(before), "after": contrast(after), "change": change}


def wrapping(**measures: dict[str, Any]) -> dict[str, Any]:
    flat = measure(0.0, 0.0)
    names = ("gap_harmless", "gap_harmful", "separation_plain", "separation_wrapped")
    return {"families": ["nested_fiction"], **{name: measures.get(name, flat) for name in names}}


def with_summary(**parts: Any) -> ReportInputs:
    inputs = example()
    return replace(inputs, summary={**inputs.summary, **parts})


def moved(group: str, before: float, after: float, *, p: float = 0.001) -> GroupRow:
    change = Difference(after - before, after - before - 0.05, after - before + 0.05, p, 60)
    return GroupRow(group, None, interval(before, 60), interval(after, 60), change)


def test_a_bound_passes_where_all_its_checks_do() -> None:
    verdict = bounds_verdict(
        {
            "gate": gate(
                check("max_asr", "attack:nested_fiction", passed=True),
                check("max_benign_drop", "benign", passed=True),
                check("max_benign_drop", "wrapped", passed=False, measured=0.361),
                check("min_plain_refusal", "plain", passed=False, measured=None),
            )
        }
    )
    assert (verdict.text, verdict.effect) == ("Passes 1 of 3 bounds", "worse")
    assert verdict.reasons == (
        "Fails max_benign_drop: compliance, wrapped 36.1%, up to 20.0% in the 95% interval, limit 5.0%.",
        "Fails min_plain_refusal: plain refusal none scored, down to 20.0% in the 95% interval, limit 5.0%.",
    )


def test_all_bounds_kept_none_set_and_none_checked() -> None:
    passed = bounds_verdict({"gate": gate(check("max_asr", "attack:a", passed=True))})
    assert (passed.text, passed.effect) == ("Passes its bound", "better")
    for summary in ({}, {"gate": None}):
        unset = bounds_verdict(summary)
        assert (unset.text, unset.effect) == ("No bounds are set", "unclear")
        assert "section gate, such as max_asr: 0.1" in unset.reasons[0]
    failed = bounds_verdict({"gate": gate(problem="--max-asr bounds a quantity that was not measured")})
    assert (failed.text, failed.effect) == ("1 bound not checked", "worse")


def test_the_worst_cost_is_the_largest_clear_worsening_whatever_it_is() -> None:
    rows = [moved("borderline", 0.1, 0.6, p=0.2), moved("wrapped", 0.9, 0.6), moved("benign", 0.9, 0.8)]
    cost = worst_cost(example(groups=rows))
    assert cost is not None
    assert (cost.name, cost.is_clear) == ("Compliance in attack wrapping", True)
    assert cost.loss == pytest.approx(0.3)
    assert cost.change == "−30.0 points (−35.0 to −25.0)"
    unclear = worst_cost(example(groups=rows[:1]))
    assert unclear is not None
    assert (unclear.name, unclear.is_clear) == ("Over-refusal", False)
    assert worst_cost(example(groups=[moved("borderline", 0.6, 0.1), moved("attack:a", 0.1, 0.9)])) is None


def test_capability_and_the_loss_on_gold_answers_compete_for_the_worst_cost() -> None:
    scores = replace(with_summary(capability=capability(few="inferior")), groups=[])
    cost = worst_cost(scores)
    assert cost is not None
    assert (cost.name, cost.is_clear) == ("few acc", True)
    loss = {"before": 2.0, "after": 3.0, "n": 40, "change": {"increase": 0.5, "low": 0.4, "high": 0.6}}
    cost = worst_cost(replace(scores, summary={**scores.summary, "gold_answer_loss": loss}))
    assert cost is not None
    assert (cost.name, cost.change) == ("Gold-answer loss", "+50.0% (+40.0% to +60.0%)")


@pytest.mark.parametrize(
    ("name", "before", "after", "effect"),
    [
        ("gap_harmless", 0.0, 0.5, "worse"),
        ("gap_harmless", 0.5, 0.0, "better"),
        ("gap_harmful", -0.9, 0.0, "better"),
        ("gap_harmful", 0.0, -0.9, "worse"),
        ("separation_plain", 0.3, 0.6, "better"),
        ("separation_wrapped", 0.6, 0.3, "worse"),
        ("separation_wrapped", 0.6, 0.58, "unclear"),
        ("separation_wrapped", None, 0.58, "unclear"),
    ],
)
def test_a_gap_should_be_zero_and_a_separation_rise(
    name: str, before: float | None, after: float | None, effect: str
) -> None:
    rows = wrapping_rows({"wrapping": wrapping(**{name: measure(before, after)})})
    assert {row.measure: row.effect for row in rows}[name] == effect
    unsure = wrapping_rows({"wrapping": wrapping(**{name: measure(before, after, p=0.2)})})
    assert {row.effect for row in unsure} == {"unclear"}


def test_figures_have_intervals_and_a_direction() -> None:
    inputs = with_summary(wrapping=wrapping(gap_harmless=measure(0.0, 0.43)))
    pooled = GroupRow("attack", True, interval(0.95, 120), interval(0.01, 120), Difference(-0.94, -1, -0.8, 0.001, 60))
    shown = {figure.label: figure for figure in figures(replace(inputs, pooled={True: pooled}))}
    assert (shown["Attacks trained on"].effect, shown["Attacks trained on"].span.count("→")) == ("better", 1)
    gap = shown["Wrapping gap, harmless"]
    assert (gap.before, gap.after, gap.effect) == ("0.0", "+43.0", "worse")
    assert gap.span == "−10.0 to +10.0 → +33.0 to +53.0"
    assert shown["Largest cost, not clear"].note == "Over-refusal"


def test_the_page_and_the_card_show_all_of_it() -> None:
    inputs = with_summary(
        wrapping=wrapping(gap_harmless=measure(0.0, 0.43)), gate=gate(check("max_asr", "attack:<b>", passed=False))
    )
    page, card = render_report(inputs), render_model_card(inputs)
    assert "Passes 0 of 1 bound" in page
    assert "Passes 0 of 1 bound" in card
    assert "Fails max_asr: &lt;b&gt; 10.0%" in page
    assert '<div class="worse"><dt>Wrapping gap, harmless</dt>' in page
    assert "| Wrapping gap, harmless, points | 0.0 (−10.0 to +10.0) | +43.0 (+33.0 to +53.0) |" in card
    bare = render_report(example())
    assert "No bounds are set" in bare
    assert "Wrapping gap" not in bare


def test_what_is_refused_and_harm_stand_beside_what_is_given() -> None:
    inputs = example()
    refused = {when: rate_json(interval(rate, 60)) for when, rate in (("before", 0.031), ("after", 0.876))}
    attacks = {**inputs.summary["attacks"]}
    attacks["role_play"] = {**attacks["role_play"], "refused": refused}
    harm = {"attack:role_play": {"before": {"mean": 0.81, "n": 60}, "after": None}}
    page = render_report(replace(inputs, summary={**inputs.summary, "attacks": attacks, "harm": harm}))
    assert page.count("refused 3.1%") == page.count("refused 87.6%") == page.count("mean harm 0.81") == 1
    assert "mean harm" not in render_report(inputs)

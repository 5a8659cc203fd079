"""The pages of one evaluation and of two compared: what the sentences say, and that replies are text."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_examples import example, groups, texts

from seawall.artifacts.evaluation import Contrast, Difference, Rate
from seawall.report import render_evaluation
from seawall.report.evaluation import EvaluationView, PlainRow, ReplyGroup, comparison_sentence, rates_sentence
from seawall.report.inputs import GroupRow
from seawall.report.wrapping import WrappingRow

WEIGHTS = "sha256:" + "0123456789abcdef" * 4
CLEAR = Difference(-0.5, -0.6, -0.4, 0.001, 40)
UNCLEAR = Difference(0.1, -0.1, 0.3, 0.3, 40)
HIGH, LOW = Rate(0.9, 0.8, 0.95, 40), Rate(0.4, 0.3, 0.5, 40)


def compared(model: str) -> EvaluationView:
    gap = WrappingRow("gap_harmless", Contrast(0.2, 0.1, 0.3, 40), Contrast(0.1, 0.0, 0.2, 40), UNCLEAR)
    rows = example().samples[:3]
    return EvaluationView(
        models=(f"{model}-base", model),
        weights=(WEIGHTS, WEIGHTS),
        groups=groups(),
        wrapping=[gap],
        numbers=[PlainRow("loss on gold answers", "1.200", "1.250", "+4.2% (+1.0% to +7.0%)", "nats per answer token")],
        replies=[ReplyGroup("plain", "3 verdicts", rows)],
        notes=["A and B have the same weights."],
        facts=[("judge", "keyword")],
    )


def single(model: str) -> EvaluationView:
    view = compared(model)
    rows = [replace(row, after=None, change=None) for row in view.groups]
    return replace(view, models=(model,), weights=(WEIGHTS,), groups=rows, wrapping=(), notes=())


def row(group: str, change: Difference, before: Rate = HIGH, after: Rate = LOW) -> GroupRow:
    return GroupRow(group, None, before, after, change)


RISE = Difference(0.5, 0.4, 0.6, 0.001, 40)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "No rate was compared."),
        ([row("plain", UNCLEAR)], "No clear change in 1 rate."),
        ([row("plain", CLEAR)], "Plain refusal fell from 90.0% to 40.0%."),
        (
            [row("attack:story", RISE, LOW, HIGH), row("plain", CLEAR), row("benign", UNCLEAR)],
            "Attack success (story) rose from 40.0% to 90.0%; plain refusal fell from 90.0% to 40.0%; "
            "no other rate clearly changed.",
        ),
        (
            [row(f"attack:{name}", RISE, LOW, HIGH) for name in "abc"],
            "Attack success clearly rose in 3 of 3 families.",
        ),
    ],
)
def test_the_headline_names_clear_changes_alone(rows: list[GroupRow], sentence: str) -> None:
    assert comparison_sentence(rows) == sentence


def test_the_headline_of_one_evaluation_names_what_was_asked() -> None:
    unknown = GroupRow("benign", None, Rate(None, 0.0, 1.0, 4, unscored=4))
    attacks = [GroupRow(f"attack:{name}", None, rate) for name, rate in (("a", HIGH), ("b", LOW))]
    assert rates_sentence([GroupRow("plain", None, HIGH), unknown]) == "90.0% of plain harmful requests are refused."
    assert rates_sentence(attacks) == "65.0% of attacks succeed (mean of 2 families)."
    assert rates_sentence([unknown]) == "No reply of these groups could be scored."


def test_effects_are_counted() -> None:
    view = replace(compared("m"), groups=[row("plain", CLEAR), row("benign", UNCLEAR)], wrapping=())
    assert view.count == "Clearly worse on 1 of 2 measures, better on 0, no clear change on 1."
    assert single("m").count == ""


@pytest.mark.parametrize("view", [single("m"), compared("m")])
def test_replies_and_names_are_text(view: EvaluationView) -> None:
    attack = "</div><script>alert(1)</script>\x1b\u202e"
    page = render_evaluation(
        replace(view, replies=[ReplyGroup("plain", "1", [texts(attack)])], facts=[("judge", attack)]),
        recipe={"name": attack},
        manifest={"x": attack},
    )
    assert "<script" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page


def test_few_replies_are_told() -> None:
    view = replace(compared("m"), groups=[row("plain", UNCLEAR, replace(HIGH, n=5), LOW)])
    assert any("Fewer than 30" in text for text in view.warnings)

"""The headline on a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from seawall.artifacts.evaluation import Contrast, Difference, EvalResult, Rate, Wrapping
from seawall.evaluation.view import headline_table, nothing_scored


def test_a_group_of_which_nothing_was_scored_shows_no_rate() -> None:
    groups = {"plain": Rate(0.5, 0.0, 1.0, n=3, unscored=3), "benign": Rate(0.5, 0.1, 0.9, n=3, unscored=1)}
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(headline_table([("rate", EvalResult("sha256:0", groups, None, 0, "eval.jsonl"))], {}))
    _, plain, benign = console.export_text().splitlines()
    assert "none scored" in plain
    assert "(3 unscored)" in plain
    assert "%" not in plain
    assert "50.0% [10.0–90.0]" in benign


def test_the_wrapping_gap_and_the_separation_have_rows() -> None:
    gap, unknown = Contrast(0.123, 0.02, 0.3, 80), Contrast(None, -1.0, 1.0, 0)
    result = EvalResult(
        "sha256:0", {"plain": Rate(0.5, 0.1, 0.9, n=9)}, None, 0, "x", wrapping=Wrapping(gap, gap, unknown, gap, ("a",))
    )
    change = Difference(0.1, 0.05, 0.2, 0.0004, 80)
    names = ("gap_harmless", "gap_harmful", "separation_plain", "separation_wrapped")
    changes = {"plain": change, **{f"wrapping:{name}": change for name in names}}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(headline_table([("before", result), ("after", result)], changes))
    lines = {line.split("  ")[0]: line for line in console.export_text().splitlines()}
    assert lines["wrapping gap, harmless"].count("+12.3 [+2.0 to +30.0]") == 2
    assert lines["wrapping gap, harmless"].rstrip().endswith("+10.0, p<.001")
    assert "none scored" in lines["separation, plainly"]


def test_groups_without_a_scored_reply_are_named_in_one_line() -> None:
    groups = {"plain": Rate(None, 0.0, 1.0, n=3, unscored=3), "benign": Rate(0.5, 0.1, 0.9, n=3)}
    result = EvalResult("sha256:0", groups, None, 0, "eval.jsonl")
    assert nothing_scored([("before", result)]) == (
        "nothing could be scored, so there is no rate: plain refusal (before: 3 replies)"
    )
    scored = EvalResult("sha256:0", {"benign": groups["benign"]}, None, 0, "eval.jsonl")
    assert nothing_scored([("before", scored)]) is None

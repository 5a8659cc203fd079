"""The headline on a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from seawall.artifacts.evaluation import EvalResult, Rate
from seawall.evaluation.view import headline_table


def test_a_group_of_which_nothing_was_scored_shows_no_rate() -> None:
    groups = {"plain": Rate(0.5, 0.0, 1.0, n=3, unscored=3), "benign": Rate(0.5, 0.1, 0.9, n=3, unscored=1)}
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(headline_table([("rate", EvalResult("sha256:0", groups, None, 0, "eval.jsonl"))], {}))
    _, plain, benign = console.export_text().splitlines()
    assert "none scored" in plain
    assert "(3 unscored)" in plain
    assert "%" not in plain
    assert "50.0% [10.0–90.0]" in benign

"""The paired refusals that benchmarks/efficacy.py prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from loading import load_script

PATH = Path(__file__).parents[3] / "benchmarks" / "efficacy.py"
GOALS = [f"goal {number}" for number in range(20)]


@pytest.fixture
def efficacy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load_script(PATH, monkeypatch)


def row(variant: str, labels: Sequence[str], *, seed: int = 0, steps: int = 39) -> dict[str, Any]:
    replies = {"plain": [[goal, label] for goal, label in zip(GOALS, labels, strict=True)]}
    return {"variant": variant, "seed": seed, "steps": steps, "pairs": None, "labels": replies}


def cells(table: str) -> list[str]:
    return [cell.strip() for cell in table.splitlines()[-1].strip("|").split("|")]


def test_a_method_is_paired_with_rasa_by_goal(efficacy: ModuleType) -> None:
    half = ["refused", "evades"] * 10
    rows = [row("untouched", half, steps=0), row("RASA", half), row("shared experts", ["refused"] * 20)]
    name, seeds, plain = cells(efficacy.refusal_differences(rows))
    assert (name, seeds) == ("shared experts", "1")
    assert plain.startswith("+50 [+")


def test_evading_is_no_refusal_and_what_cannot_be_judged_is_in_no_comparison(efficacy: ModuleType) -> None:
    ours = ["complied"] * 10 + ["refused"] * 10
    theirs = ["evades"] * 10 + ["unscored"] * 10
    rows = [row("untouched", ours, steps=0), row("RASA", ours), row("all experts", theirs)]
    assert cells(efficacy.refusal_differences(rows))[-1] == "+0 [+0, +0]"


def test_seeds_that_only_one_of_the_two_has_do_not_count(efficacy: ModuleType) -> None:
    refused, complied = ["refused"] * 20, ["complied"] * 20
    rows = [
        row("untouched", complied, steps=0),
        row("RASA", complied),
        row("RASA", refused, seed=1),
        row("random experts", complied),
        row("random experts", complied, seed=1),
        row("random experts", refused, seed=2),
    ]
    _, seeds, plain = cells(efficacy.refusal_differences(rows))
    assert seeds == "2"
    # One seed by -100 and one by 0: between seeds everything is possible.
    assert plain == "-50 [-100, +0]"


def test_a_method_without_a_common_seed_has_no_row(efficacy: ModuleType) -> None:
    refused = ["refused"] * 20
    rows = [row("untouched", refused, steps=0), row("RASA", refused), row("all experts", refused, seed=1)]
    assert len(efficacy.refusal_differences(rows).splitlines()) == 2

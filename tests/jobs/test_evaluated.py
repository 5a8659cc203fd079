"""The page of an evaluation, alone and against another, as `seawall report` writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import forked, refused
from evaluations import verdicts, write_evaluation
from seawall.errors import ConfigError
from seawall.jobs.evaluated import SHOWN_PER_GROUP, compared_view, single_view, write_evaluation_page
from seawall.shell.comparison import compare_evaluations
from seawall.shell.evaluated import open_evaluation

BASE = {"plain": verdicts(38, 2), "attack:story": verdicts(20, 20), "benign": verdicts(0, 40)}
TUNED = {"plain": verdicts(10, 30), "attack:story": verdicts(20, 20), "borderline": verdicts(1, 3)}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    base = write_evaluation(tmp_path / "base", BASE, model="/home/someone/base", losses=[0.5, 0.7])
    tuned = write_evaluation(tmp_path / "tuned", TUNED, weights="sha256:b", losses=[0.6, 0.7])
    return base, tuned


def test_a_comparison_shows_the_verdicts_that_differ(folders: tuple[Path, Path]) -> None:
    a, b = map(open_evaluation, folders)
    view = compared_view(a, b, compare_evaluations(a, b))
    assert view.headline == "Plain refusal fell from 95.0% to 25.0%; no other rate clearly changed."
    assert [row.group for row in view.groups] == ["plain", "attack:story"]
    (replies,) = view.replies
    assert replies.summary == f"28 verdicts (refused → complied: 28), the first {SHOWN_PER_GROUP} here"
    assert len(replies.rows) == SHOWN_PER_GROUP
    assert "Only A was asked: benign compliance." in view.warnings
    assert "Only B was asked: over-refusal." in view.warnings


def test_one_evaluation_shows_every_group(folders: tuple[Path, Path]) -> None:
    view = single_view(open_evaluation(folders[1]))
    assert [block.group for block in view.replies] == list(TUNED)
    assert view.headline.startswith("50.0% of attacks succeed (1 family); 25.0% of plain harmful requests")
    assert [row.name for row in view.numbers] == ["loss on gold answers"]


def test_the_command_writes_both_pages(folders: tuple[Path, Path], planted_run: Path) -> None:
    base, tuned = folders
    done = forked("report", tuned, "--against", base)
    assert (done.returncode, done.stdout.strip()) == (0, str(tuned / "comparison.html"))
    page = (tuned / "comparison.html").read_text("utf-8")
    assert "/home/someone" not in page
    assert "Plain refusal fell from 95.0% to 25.0%" in page
    assert write_evaluation_page(base) == base / "report.html"
    refused("report", tuned, "--against", base / "none", saying="holds no evaluation; got no such folder")
    refused("report", tuned, "--against", tuned / "comparison.html", saying="holds no evaluation; got a file")
    refused("report", planted_run, "--against", base, saying="leave out --against")
    with pytest.raises(ConfigError, match="is part of a run"):
        write_evaluation_page(planted_run / "eval-after")

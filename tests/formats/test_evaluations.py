"""The evaluations of a run and of `seawall eval` are read alike."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from commands import forked
from seawall.errors import RunFolderError
from seawall.formats.evaluations import read_evaluations


def test_a_run_has_two_evaluations_and_a_folder_of_eval_has_one(
    planted: Path, planted_run: Path, tmp_path: Path
) -> None:
    before, after = read_evaluations(planted_run)
    assert [row.task for row in (before, after)] == ["planted-before", "planted-after"]
    assert before.result.model_fingerprint != after.result.model_fingerprint
    model = str(before.recipe["model"]["id"])
    done = forked("eval", planted, "--model", model, "--output", tmp_path / "eval")
    assert done.returncode == 0, done.stderr
    (alone,) = read_evaluations(tmp_path / "eval")
    assert alone.task == "planted-eval"
    assert alone.model == before.model
    assert alone.result.groups["plain"] == before.result.groups["plain"]
    assert alone.times["started"] <= alone.times["ended"]


def test_an_unfinished_run_has_the_evaluations_that_are_finished(planted_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(planted_run, run, ignore=shutil.ignore_patterns("eval-after", "summary.json", "model"))
    assert [row.name for row in read_evaluations(run)] == ["before"]
    shutil.rmtree(run / "eval-before")
    with pytest.raises(RunFolderError, match="holds no evaluation"):
        read_evaluations(run)
    with pytest.raises(RunFolderError, match="is no run folder; got a file"):
        read_evaluations(run / "resolved.json")

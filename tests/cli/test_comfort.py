"""`--limit`, `--quiet` and `--dry-run`: a limited sample says so, and is never taken for the whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from commands import forked, refused
from seawall.cli.audit import audit
from seawall.cli.evaluate import evaluate
from seawall.cli.landscape import landscape
from seawall.cli.stages import run
from seawall.cli.steer import steer
from seawall.config import load_recipe

COMMANDS: dict[str, Any] = {"audit": audit, "steer": steer, "landscape": landscape}
FAST = ("--set", "eval.gold=false", "--set", "eval.bootstrap=100")


def test_a_limited_and_quiet_evaluation(planted: Path, tmp_path: Path) -> None:
    words: list[str | Path] = ["eval", planted, "--model", planted.parent / "model", *FAST, "-o", tmp_path / "out"]
    done = forked(*words, "--limit", "2", "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "Limited sample: at most 2 prompts of every group" in done.stdout
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["limit"] == 2
    assert summary["attacks"]["story"]["n"] == 2
    refused(*words, saying="data.limit differs")
    done = forked(*words, "--limit", "2")
    assert done.returncode == 0
    assert "Limited sample" in done.stderr


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(planted, limit=2, output=tmp_path / "out", dry_run=True)
    assert "verdict" in capsys.readouterr().out
    evaluate(planted, output=tmp_path / "out", dry_run=True, as_json=True)
    assert "verdict" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["steer", "landscape"])
def test_a_dry_run_plans_a_run_by_its_own_settings(
    planted_run: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`recipe.yaml` of a run holds changes by --set as comments alone."""
    before = sorted(planted_run.rglob("*"))
    COMMANDS[verb](planted_run, dry_run=True, sets=[f"{verb}.test_prompts=3"])
    assert "verdict" in capsys.readouterr().out
    assert sorted(planted_run.rglob("*")) == before


@pytest.mark.parametrize("verb", ["audit", "steer", "landscape"])
def test_a_command_on_a_limited_run_says_so(
    planted: Path, planted_run: Path, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(planted, ["data.limit=5"])
    monkeypatch.setattr("seawall.shell.job.recipe_of_run", lambda *_, **__: (recipe, None))
    monkeypatch.setattr(f"seawall.jobs.{verb}.{verb}_run", lambda *_, **__: [])
    monkeypatch.setattr(f"seawall.cli.{verb}._show", lambda *_, **__: None)
    COMMANDS[verb](planted_run if verb != "audit" else str(planted_run))
    assert "Limited sample: at most 5 prompts of every group" in capsys.readouterr().out


@pytest.mark.parametrize("limit", ["0", "-1", "some"])
def test_a_wrong_limit(planted: Path, limit: str) -> None:
    refused("run", planted, "--limit", limit, saying="--limit")


def test_a_report_says_that_its_sample_is_limited(planted_run: Path) -> None:
    from seawall.jobs.report import collect
    from seawall.report import render_model_card, render_report
    from seawall.runs.files import read_json
    from seawall.runs.folder import RunFolder

    folder = RunFolder(planted_run)
    inputs = collect(folder, read_json(folder.summary))
    assert "Limited sample" not in render_report(inputs)
    inputs.recipe["data"]["limit"] = 5
    assert "Limited sample: at most 5 prompts of every group" in render_report(inputs)
    assert "at most 5 of every group were asked" in render_model_card(inputs)

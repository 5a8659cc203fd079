"""`seawall audit` and `seawall report RUN` as they are met on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from commands import fresh, refused
from seawall.cli.app import app
from seawall.errors import SeawallError


def test_a_run_is_audited_and_its_report_written_again(planted_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(planted_run, tmp_path / "run")
    done = fresh("audit", run, "--only", "routing_shortcut", "--set", "audit.routing_shortcut.goals=2", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)["audits"]["routing_shortcut"]
    assert [one["name"] for one in found["conditions"]][:2] == ["original", "repaired"]
    assert found["schema"] == 1
    assert "audit-routing_shortcut" in (run / "report.html").read_text()
    (run / "report.html").unlink()
    again = CliRunner().invoke(app, ["report", str(run)], catch_exceptions=False)
    assert again.exit_code == 0
    assert again.stdout.strip() == str(run / "report.html")
    assert "audit-routing_shortcut" in (run / "report.html").read_text()


@pytest.mark.parametrize("target", ["RUN", "MODEL"])
def test_a_dry_run_plans_the_audits_and_writes_nothing(
    planted: Path, planted_run: Path, tmp_path: Path, target: str
) -> None:
    model: list[str | Path] = [planted.parent / "model", "--recipe", planted, "--output", tmp_path / "x"]
    words = ["audit", *map(str, [planted_run] if target == "RUN" else model), "--dry-run", "--json"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert json.loads(done.stdout)["verb"] == "audit"
    assert not (planted_run / "audit").exists()
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("only", "stages"),
    [("routing_shortcut", ["conditions"]), ("tamper", ["tamper"]), ("tamper,silencing", ["conditions", "tamper"])],
)
def test_a_dry_run_plans_what_is_asked_for_alone(planted_run: Path, only: str, stages: list[str]) -> None:
    words = ["audit", str(planted_run), "--dry-run", "--json"]
    every, some = (
        json.loads(CliRunner().invoke(app, [*words, *more], catch_exceptions=False).stdout)
        for more in ([], ["--only", only])
    )
    assert [stage["name"] for stage in some["stages"]] == stages
    assert every["peak"] >= some["peak"]


def test_wrong_input_is_one_line(tmp_path: Path) -> None:
    refused("audit", tmp_path, saying="is neither a run nor a model; got a folder without")


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (("audit", "NONE"), "is no run folder, and the audit of a model needs --output"),
        (("audit", "RUN", "--output", "x"), "is a run; got --recipe or --output"),
        (("audit", "RUN", "--only", "loud"), "--only names an unknown audit; got 'loud'"),
        (("audit", "RUN", "--set", "eval.seed=2"), "expected settings of `audit` alone"),
        (("audit", "RUN", "--limit", "2"), "expected settings of `audit` alone"),
        (("audit", "lab", "--output", "NONE", "--only", "routing_shortcut"), "routing_shortcut needs a finished run"),
        (("report", "RUN", "--set", "eval.seed=2"), "is a run; got --set or --output"),
        (("report", "EMPTY"), "is no run folder"),
    ],
)
def test_wrong_input(planted_run: Path, tmp_path: Path, arguments: tuple[str, ...], saying: str) -> None:
    (tmp_path / "empty").mkdir()
    places = {"RUN": str(planted_run), "NONE": str(tmp_path / "none"), "EMPTY": str(tmp_path / "empty")}
    with pytest.raises(SeawallError) as caught:
        CliRunner().invoke(app, [places.get(word, word) for word in arguments], catch_exceptions=False)
    assert saying in str(caught.value)
    assert not (planted_run / "audit").exists()
    assert not (tmp_path / "none").exists()

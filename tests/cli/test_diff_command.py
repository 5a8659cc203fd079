"""`seawall diff` prints tables or JSON, and says in one line what it cannot compare."""

from __future__ import annotations

import json
from pathlib import Path

from commands import forked, fresh, refused


def test_runs_and_checkpoints(planted: Path, planted_run: Path) -> None:
    runs = fresh("diff", planted_run, planted_run)
    assert runs.returncode == 0, runs.stderr
    assert "Jaccard 1.00" in runs.stdout
    assert "over-refusal" in runs.stdout
    checkpoints = forked("diff", planted.parent / "model", planted_run / "model", "--json")
    assert checkpoints.returncode == 0, checkpoints.stderr
    assert checkpoints.stderr == ""
    assert json.loads(checkpoints.stdout)["others"] == {}


def test_wrong_input(planted_run: Path, tmp_path: Path) -> None:
    refused("diff", planted_run, tmp_path, saying="is neither an evaluation nor a run nor a checkpoint; got a folder")
    refused("diff", planted_run, planted_run / "model", saying="expected two evaluations, two runs or two checkpoints")

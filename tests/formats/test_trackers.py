"""Trackers' own readers find the repair's losses and the rates of the evaluations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from commands import refused
from seawall.artifacts.evaluation import EvalResult
from seawall.formats.trackers import repair_points, write_tracker
from seawall.runs.folder import RunFolder

pytestmark = pytest.mark.filterwarnings("default")  # the trackers' own


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "repair/metrics.jsonl").read_text().splitlines()]


def test_every_update_is_a_point(planted_run: Path) -> None:
    points = list(repair_points(RunFolder.existing(planted_run)))
    assert [step for step, _ in points] == list(range(1, len(points) + 1))
    assert [numbers.get("expert/loss", numbers.get("router/loss")) for _, numbers in points] == losses(planted_run)


def test_tensorboards_reader_finds_losses_and_rates(planted_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (seawall[trackers])")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(write_tracker(planted_run, tmp_path / "events", "tensorboard")))
    events.Reload()
    rows = sorted((row.step, row.value) for phase in ("expert", "router") for row in events.Scalars(f"{phase}/loss"))
    assert [value for _, value in rows] == pytest.approx(losses(planted_run))
    rates = [EvalResult.load(planted_run / f"eval-{side}").groups["attack:story"].rate for side in ("before", "after")]
    assert [row.value for row in events.Scalars("rates/attack:story")] == pytest.approx(rates)


def test_wandb_writes_an_offline_run(planted_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    folder = write_tracker(planted_run, tmp_path / "wandb", "wandb")
    assert list(folder.rglob("*.wandb"))


def test_trackios_reader_finds_losses_and_rates(planted_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed")
    folder = write_tracker(planted_run, tmp_path / "trackio", "trackio")

    def read(metric: str) -> list[float]:
        words = ["get", "metric", "--project", "seawall", "--run", run_name, "--metric", metric, "--json"]
        command = [sys.executable, "-m", "trackio.cli", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return [row["value"] for row in json.loads(done.stdout)["values"]]

    environment = {**os.environ, "TRACKIO_DIR": str(folder)}
    run_name = json.loads((planted_run / "resolved.json").read_text())["name"]
    assert sorted([*read("expert/loss"), *read("router/loss")]) == pytest.approx(sorted(losses(planted_run)))
    rates = [EvalResult.load(planted_run / f"eval-{side}").groups["attack:story"].rate for side in ("before", "after")]
    assert read("rates/attack:story") == pytest.approx(rates)


def test_wrong_input(planted_run: Path, tmp_path: Path) -> None:
    refused("export", "tracker", planted_run, "-o", tmp_path / "a", "--tracker", "other", saying="--tracker")

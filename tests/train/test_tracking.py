"""The repair's progress reaches experiment trackers of Accelerate while it runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from seawall.config import load_recipe
from seawall.errors import ConfigError, SeawallError
from seawall.jobs.run import run_recipe
from seawall.runs.files import read_metrics
from seawall.runs.progress import Quiet
from seawall.train.trackers import require_trackers, tracking

LOGGED: list[tuple[int, dict[str, Any]]] = []


class Recorder:
    """A tracker, as Accelerate's own are used, that keeps what it gets."""

    name = "recorder"
    requires_logging_directory = True

    def __init__(self, run_name: str, logging_dir: str) -> None:
        self.folder = Path(logging_dir) / run_name

    def start(self) -> None:
        self.folder.mkdir(parents=True)
        get_logger(__name__).debug("started")

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        assert step is not None
        LOGGED.append((step, values))

    def finish(self) -> None:
        (self.folder / "finished").touch()


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, Recorder.name, Recorder)
    yield
    LOGGED.clear()


def test_every_update_and_validation_of_a_repair_is_tracked(planted: Path, planted_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(planted_run, run)
    for name in ("repair", "eval-after"):
        shutil.rmtree(run / name)
    recipe = load_recipe(planted, ["repair.trackers=[recorder]"])
    run_recipe(recipe, run, text=planted.read_text(), reporter=Quiet(), until="repair")
    assert (run / "tracker" / recipe.name / "finished").is_file()
    rows = read_metrics(run / "repair/metrics.jsonl")
    updates = [(step, values) for step, values in LOGGED if any(name.endswith("/lr") for name in values)]
    assert [step for step, _ in updates] == list(range(1, len(rows) + 1))
    for row, (_, values) in zip(rows, updates, strict=True):
        assert values[f"{row['phase']}/loss"] == row["loss"]
        assert values[f"{row['phase']}/gradient_norm"] == row["gradient_norm"]
    validations = [values for _, values in LOGGED if "validation/attack_success" in values]
    assert len(validations) == len({row["round"] for row in rows})


def test_the_same_run_goes_on_with_other_trackers(planted: Path, planted_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(planted_run, run)
    recipe = load_recipe(planted, ["repair.trackers=[recorder]"])
    run_recipe(recipe, run, text=planted.read_text(), reporter=Quiet(), until="repair")
    assert not LOGGED
    assert not (run / "tracker").exists()


def test_a_tracker_may_log_by_accelerate_s_logger_before_anything_else_used_accelerate(tmp_path: Path) -> None:
    """As trackio's does."""
    PartialState._reset_state()
    with tracking(["recorder"], "x", tmp_path) as track:
        track({"phase": "expert", "round": 1, "step": 1, "loss": 0.5})
    assert LOGGED == [(1, {"expert/loss": 0.5})]


def test_trackio_reads_the_curve(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed")
    script = (
        "from pathlib import Path; from seawall.train.trackers import tracking\n"
        "with tracking(['trackio'], 'sea', Path('.')) as track:\n"
        "    for step in (1, 2): track({'phase': 'expert', 'round': 1, 'step': step, 'loss': 1 / step})\n"
        "from trackio.sqlite_storage import SQLiteStorage\n"
        "rows = SQLiteStorage.get_logs('sea', SQLiteStorage.get_runs('sea')[0])\n"
        "assert [(row['step'], row['expert/loss']) for row in rows] == [(1, 1.0), (2, 0.5)], rows\n"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr


def test_wrong_trackers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown tracker; got tensorbord; expected .*tensorboard"):
        require_trackers(["tensorbord"])
    (tmp_path / "x").touch()
    with (
        pytest.raises(SeawallError, match="the tracker recorder cannot be started"),
        tracking(["recorder"], "x", tmp_path),
    ):
        pass


def test_tensorboard_reads_the_curve(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed (pip install 'seawall[trackers]')")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tracking(["tensorboard"], "lab", tmp_path) as track:
        for step in (1, 2):
            track({"phase": "expert", "round": 1, "step": step, "loss": 1 / step, "lr": 0.1})
    events = EventAccumulator(str(tmp_path / "lab")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("expert/loss")] == [(1, 1.0), (2, 0.5)]

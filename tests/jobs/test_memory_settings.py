"""A run whose repair exceeds memory: one line, and the same command with the setting it names goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from limited import limited_memory
from planted import FEW_PROMPTS
from seawall.config import load_recipe
from seawall.errors import RunFolderError, SeawallError
from seawall.jobs.run import Outcome, run_recipe
from seawall.methods.rasa import stages
from seawall.methods.rasa.repair import RepairResult, repair
from seawall.runs.files import read_metrics
from seawall.runs.progress import Quiet


def _run(recipe: Path, folder: Path, *changes: str) -> Outcome:
    loaded = load_recipe(recipe, [*FEW_PROMPTS, *changes])
    return run_recipe(loaded, folder, text=recipe.read_text(), reporter=Quiet(), until="repair")


def _little_memory(moe: Any, *args: Any, **kwargs: Any) -> RepairResult:
    with limited_memory(moe.model, 2, training=True):
        return repair(moe, *args, **kwargs)


def test_the_named_setting_finishes_the_same_run(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "repair", _little_memory)
    with pytest.raises(SeawallError, match=r"memory ran out in the repair; set repair\.micro_batch_size=auto"):
        _run(planted, tmp_path / "run")
    profiled = (tmp_path / "run" / "profile" / "DONE").stat().st_mtime_ns
    with pytest.raises(RunFolderError, match=r"repair\.batch_size differs"):
        _run(planted, tmp_path / "run", "repair.batch_size=1")
    _run(planted, tmp_path / "run", "repair.micro_batch_size=auto", "repair.gradient_checkpointing=true")
    assert (tmp_path / "run" / "profile" / "DONE").stat().st_mtime_ns == profiled
    rows = read_metrics(tmp_path / "run" / "repair" / "metrics.jsonl")
    assert {row["micro_batch_size"] for row in rows} <= {1, 2}
    finished = (tmp_path / "run" / "repair" / "DONE").stat().st_mtime_ns
    _run(planted, tmp_path / "run", "repair.micro_batch_size=1")
    assert (tmp_path / "run" / "repair" / "DONE").stat().st_mtime_ns == finished

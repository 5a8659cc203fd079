"""A whole run that measures capability too."""

from __future__ import annotations

import importlib.util
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from planted import FEW_PROMPTS
from seawall.artifacts.evaluation import EvalResult
from seawall.config import load_recipe
from seawall.errors import ConfigError, DataError
from seawall.evaluation.compare import capability_changes
from seawall.evaluation.gate import Bounds
from seawall.evaluation.view import headline_table
from seawall.jobs.gate import gate_run, gate_table
from seawall.jobs.run import Outcome, run_recipe
from seawall.runs.progress import Quiet

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-evaluation-harness is not installed (pip install 'seawall[capability]')",
)
ROWS = [{"question": f"Draw {at}", "choices": ["good", "bad"], "answer": at % 2} for at in range(12)]


def section(path: Path) -> str:
    return f"eval.capability={{tasks: [{{kind: choice, path: {path}}}], batch_size: 4}}"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "letters.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def run(planted: Path, folder: Path, rows: Path) -> Outcome:
    changes = [*FEW_PROMPTS, section(rows), "repair.rounds=1", "export.checkpoint=false"]
    return run_recipe(load_recipe(planted, changes), folder, text="", reporter=Quiet())


@needs_harness
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scores_reach_summary_table_report_and_gate(planted: Path, rows: Path, tmp_path: Path) -> None:
    done = run(planted, tmp_path / "run", rows)
    assert done.summary is not None
    found: dict[str, Any] = done.summary["capability"]["letters"]["acc"]
    file = done.run.stage("eval-after") / "capability" / "letters.jsonl"
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    assert found["after"]["score"] == sum(row["scores"]["acc"] for row in kept) / len(ROWS)
    assert found["after"]["n"] == found["change"]["goals"] == len(ROWS)
    assert found["change"]["difference"] == pytest.approx(found["after"]["score"] - found["before"]["score"])
    sides = [EvalResult.load(done.run.stage(f"eval-{when}")) for when in ("before", "after")]
    (change,) = capability_changes(*sides, resamples=200)
    assert found["change"] == asdict(change.change)
    assert found["verdict"] == change.verdict(0.02)
    assert "letters acc" in done.run.report.read_text()
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(headline_table(done.rates, done.changes))
    gate = gate_run(done.run.path, Bounds(max_capability_drop=0.02))
    console.print(gate_table(gate))
    assert console.export_text().count("letters acc") == 2
    (check,) = gate.checks
    assert (check.group, check.n) == ("capability:letters acc", len(ROWS))
    assert check.decisive == change.lost[2]
    assert check.passed == (found["verdict"] == "non-inferior")
    again = run(planted, tmp_path / "run", rows)
    assert again.summary == done.summary
    rows.write_text(rows.read_text().replace("Draw 3", "Draw three"))
    other = run_recipe(
        load_recipe(planted, [*FEW_PROMPTS, section(rows), "repair.rounds=1", "export.checkpoint=false"]),
        tmp_path / "run",
        text="",
        reporter=Quiet(),
        until="evaluate",
    )
    assert other.run.stage("eval-before.old-1").is_dir(), "the questions changed, so the evaluation is another"


def test_a_missing_harness_ends_the_run_before_it_begins(
    planted: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pip install"):
        run(planted, tmp_path / "run", rows)
    assert not (tmp_path / "run").exists()


def test_a_wrong_file_ends_the_run_before_it_begins(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seawall.evaluation.capability.run.require_harness", lambda _: None)
    with pytest.raises(DataError, match=r"none\.jsonl"):
        run(planted, tmp_path / "run", tmp_path / "none.jsonl")
    assert not (tmp_path / "run").exists()

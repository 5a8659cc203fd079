"""Commands in two processes over gloo: the results of one process, a killed process, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from launching import launch, said

from seawall.artifacts.profile import ExpertProfile
from seawall.runs.files import read_json, read_metrics

AUTO = ["--set", "model.device=auto"]


@pytest.fixture(scope="module")
def launched(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes, of which the second is killed in the repair, and then the same command again."""
    folder = tmp_path_factory.mktemp("launch")
    command: list[str | Path] = ["run", planted, "--output", folder / "run"]
    questions = [{"question": f"Which is {n}?", "choices": ["a", "b"], "answer": "AB"[n % 2]} for n in range(12)]
    (folder / "q.jsonl").write_text("".join(f"{json.dumps(question)}\n" for question in questions))
    capability = f"eval.capability={{tasks: [{{kind: choice, path: {folder / 'q.jsonl'}}}], chat_template: false}}"
    measured = ["--set", capability]
    statuses = launch(
        folder,
        ["kill:7", *command],
        command,
        ["eval", planted, "--delta", folder / "run/delta", "--output", folder / "eval", "--json", *AUTO, *measured],
        ["gate", folder / "run"],
        ["eval", planted, "--set", "model.id=no-such-folder/at-all", "--output", folder / "missing", "--delta", "x"],
    )
    (folder / "statuses.json").write_text(json.dumps(statuses))
    return folder


def test_a_killed_process_ends_the_launch_and_the_same_command_goes_on(launched: Path) -> None:
    killed, resumed, *_ = json.loads((launched / "statuses.json").read_text())
    assert killed == [3, -9]
    assert said(launched / "0-0.err") == [
        "seawall: interrupted: another process of the launch has ended; run the same command to resume"
    ]
    assert resumed == [0, 0]
    assert (launched / "1-1.out").read_text() == (launched / "1-1.err").read_text() == ""


def test_two_processes_give_the_pairs_experts_and_verdicts_of_one(launched: Path, planted_run: Path) -> None:
    run = launched / "run"
    for name in ("profile/pairs.jsonl", "select/experts.json", "samples/before.jsonl", "samples/after.jsonl"):
        assert (run / name).read_bytes() == (planted_run / name).read_bytes(), name
    ours, theirs = (ExpertProfile.load(folder / "profile") for folder in (run, planted_run))
    assert ours.attack_counts_PLE.equal(theirs.attack_counts_PLE)
    assert ours.attack_mass_PLE.equal(theirs.attack_mass_PLE)
    summaries = [read_json(folder / "summary.json") for folder in (run, planted_run)]
    assert summaries[0]["repair"]["chosen_round"] == summaries[1]["repair"]["chosen_round"]


def test_the_losses_of_a_shared_repair_are_those_of_one_process(launched: Path, planted_run: Path) -> None:
    rows, expected = (read_metrics(folder / "repair/metrics.jsonl") for folder in (launched / "run", planted_run))
    assert len(rows) == len(expected) == 40
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        assert all(row[key] == pytest.approx(other[key], abs=1e-6, rel=1e-5) for key in row if key != "phase")


def test_a_model_with_a_delta_is_evaluated_by_both(launched: Path, planted_run: Path) -> None:
    statuses = json.loads((launched / "statuses.json").read_text())
    assert statuses[2] == [0, 0]
    summary: dict[str, Any] = json.loads((launched / "2-0.out").read_text())
    after = read_json(launched / "run/summary.json")
    assert summary["plain_refusal"]["rate"] == after["plain_refusal"]["after"]["rate"]
    # The harness measures on the first process alone, while the second waits for the next order.
    assert summary["capability"]["q"]["acc"]["n"] == 12


def test_a_command_that_cannot_share_says_so_once_before_it_loads(launched: Path) -> None:
    statuses = json.loads((launched / "statuses.json").read_text())
    assert statuses[3] == [2, 2]
    (line,) = said(launched / "3-0.err")
    assert "gate runs in one process; got 2 processes" in line


def test_wrong_input_ends_both(launched: Path) -> None:
    statuses = json.loads((launched / "statuses.json").read_text())
    assert statuses[4] == [2, 3]
    assert len(said(launched / "4-0.err")) == 1
    assert said(launched / "4-1.err") == []

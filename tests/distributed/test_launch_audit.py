"""Audits in two processes over gloo: every hook, mask and other weight is in both, and so is the fine-tuning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from launching import launch, said

from seawall.artifacts.audit import AuditResult
from seawall.jobs.audit import audit_run
from seawall.methods.audit.methods import AUDITS
from seawall.runs.files import read_json
from seawall.runs.folder import RunFolder
from seawall.runs.progress import Quiet
from seawall.runs.sealed import seal_files
from seawall.runs.stage import stage_hash

SETTINGS = (
    "audit.routing_shortcut.goals=3",
    "audit.patching.goals=3",
    "audit.silencing.goals=3",
    "audit.silencing.largest=0.1",
    "audit.localisation.bootstrap=100",
    "audit.localisation.twins=6",
    "audit.steering.amounts=[2]",
    "audit.steering.goals=3",
    "audit.tamper.steps=[0, 3]",
    "audit.tamper.goals=3",
    "audit.tamper.lr=0.01",
    "audit.tamper.sweeps=[openers]",
)


@pytest.fixture(scope="module")
def audited(planted: Path, planted_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, audited by one process, and by two of which the second is killed in the fine-tuning at first."""
    folder = tmp_path_factory.mktemp("audited")
    rows = [json.loads(line) for line in (planted.parent / "borderline.jsonl").read_text().splitlines()]
    twins = [{**row, "unsafe_twin": row["prompt"].replace("Watch", "Steal")} for row in rows]
    (folder / "twins.jsonl").write_text("".join(json.dumps(row) + "\n" for row in twins))
    for name in ("one", "two"):
        run = shutil.copytree(planted_run, folder / name)
        document = read_json(run / "resolved.json")
        document["eval"]["batch_size"] = 4  # several batches for each process
        document["data"]["borderline"]["path"] = str(folder / "twins.jsonl")
        (run / "resolved.json").write_text(json.dumps(document))
        seal_files(RunFolder(run))
    audit_run(folder / "one", only=(), changes=SETTINGS, reporter=Quiet())
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    command: list[str | Path] = ["audit", folder / "two", "-q", *sets]
    statuses = launch(
        folder,
        ["kill:2:seawall.methods.audit.fine_tuning:_update", *command],
        command,
        ["audit", planted.parent / "model", "--recipe", planted, "--output", folder / "model", "--only", "tamper"],
    )
    (folder / "statuses.json").write_text(json.dumps(statuses))
    return folder


def test_a_killed_process_ends_the_audit_and_the_same_command_goes_on(audited: Path) -> None:
    killed, resumed, _ = json.loads((audited / "statuses.json").read_text())
    assert killed == [3, -9]
    assert said(audited / "0-0.err") == [
        "seawall: interrupted: another process of the launch has ended; run the same command to resume"
    ]
    assert resumed == [0, 0]
    assert (audited / "1-1.out").read_text() == (audited / "1-1.err").read_text() == ""


@pytest.mark.parametrize("name", AUDITS)
def test_two_processes_find_what_one_finds(audited: Path, name: str) -> None:
    folders = [audited / run / "audit" / name for run in ("one", "two")]
    ours, theirs = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.json*") if path.is_file()}
        for folder in folders
    )
    assert ours == theirs
    first, second = (stage_hash(RunFolder(audited / run), f"audit/{name}") for run in ("one", "two"))
    assert first == second, "an audit goes on with another number of processes"
    printed = " ".join((audited / "1-0.out").read_text().split())
    assert AuditResult.load(folders[1]).claim in printed


def test_an_audit_that_needs_a_run_says_so_once_before_a_model_is_loaded(audited: Path) -> None:
    *_, refused = json.loads((audited / "statuses.json").read_text())
    assert refused[0] == 2
    (line,) = said(audited / "2-0.err")
    assert "the audit tamper needs a finished run" in line
    assert not (audited / "model").exists()

"""The study of steering in two processes over gloo: every direction, candidate and condition is in both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launching import launch, said

from planted_refusal import refusing_by_attention, refusing_by_expert
from refusing_recipe import write_refusing
from seawall.artifacts.steering import SteeringResult
from seawall.config import load_recipe
from seawall.jobs.steer import steer_recipe
from seawall.runs.folder import RunFolder
from seawall.runs.progress import Quiet
from seawall.runs.stage import stage_hash

SMALL = {"positions": [-1], "train_prompts": 16, "validation_prompts": 8, "test_prompts": 9, "batch_size": 8}
INDUCE = {"mode": "induce", "experts": False, "test_prompts": 15, "harden": {"coefficients": [0.25, 1.0], "goals": 6}}
BATCH = "eval.batch_size=4"
STUDIES = {"suppress": (refusing_by_expert, SMALL), "induce": (refusing_by_attention, {**SMALL, **INDUCE})}


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both studies by one process, and by two of which the second is killed in the first study's search."""
    folder, commands = tmp_path_factory.mktemp("steered"), list[list[str | Path]]()
    for name, (model, settings) in STUDIES.items():
        path = write_refusing(folder / name, model(), **settings)
        steer_recipe(load_recipe(path, [BATCH]), folder / f"{name}-one", text=path.read_text(), reporter=Quiet())
        commands.append(["steer", path, "-q", "--set", BATCH, "--output", folder / f"{name}-two"])
    statuses = launch(folder, ["kill:60:seawall.models.replicas:_compute", *commands[0]], *commands)
    (folder / "statuses.json").write_text(json.dumps(statuses))
    return folder


def test_a_killed_process_ends_the_study_and_the_same_command_goes_on(steered: Path) -> None:
    killed, *resumed = json.loads((steered / "statuses.json").read_text())
    assert killed == [3, -9]
    assert said(steered / "0-0.err") == [
        "seawall: interrupted: another process of the launch has ended; run the same command to resume"
    ]
    assert resumed == [[0, 0], [0, 0]]
    assert (steered / "1-1.out").read_text() == (steered / "1-1.err").read_text() == ""


@pytest.mark.parametrize("name", STUDIES)
def test_two_processes_study_what_one_studies(steered: Path, name: str) -> None:
    folders = [steered / f"{name}-{count}" / "steer" for count in ("one", "two")]
    ours, theirs = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
        for folder in folders
    )
    assert ours.keys() == theirs.keys()
    assert [path for path in ours if ours[path] != theirs[path]] == []
    assert Path("directions.safetensors") in ours
    assert (Path("hardening/hardening.json") in ours) == (name == "induce")
    first, second = (stage_hash(RunFolder(folder.parent), "steer") for folder in folders)
    assert first == second, "a study goes on with another number of processes"
    printed = " ".join((steered / f"{1 + list(STUDIES).index(name)}-0.out").read_text().split())
    assert SteeringResult.load(folders[1]).claim in printed

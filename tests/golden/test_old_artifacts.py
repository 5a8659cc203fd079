"""Artifacts that seawall 0.1.0 wrote: each loads, and saved again it is the same file, byte by byte."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_old_runs import ARCHIVE

from seawall.artifacts.anchor import Anchor
from seawall.artifacts.audit import AuditResult
from seawall.artifacts.delta import Delta
from seawall.artifacts.directions import Directions
from seawall.artifacts.evaluation import EvalResult
from seawall.artifacts.expert_set import ExpertSet
from seawall.artifacts.gene import Gene
from seawall.artifacts.graft import Graft
from seawall.artifacts.hardening import Hardening
from seawall.artifacts.landscape import LandscapeResult
from seawall.artifacts.profile import ExpertProfile
from seawall.artifacts.steering import SteeringResult
from seawall.artifacts.tuning import TuningResult, TuningRow

LOAD: dict[str, Callable[[Path], Any]] = {
    "anchor.json": Anchor.load,
    "audit.json": AuditResult.load,
    "delta.json": Delta.load,
    "directions.json": Directions.load,
    "evaluation.json": EvalResult.load,
    "experts.json": ExpertSet.load,
    "gene.json": Gene.load,
    "hardening.json": Hardening.load,
    "landscape.json": LandscapeResult.load,
    "profile.json": ExpertProfile.load,
    "seawall_graft.json": Graft.load,
    "steering.json": SteeringResult.load,
    "training.json": TuningRow.load,
    "tuning.json": TuningResult.load,
}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Every sealed JSON of the archive, by its file name."""
    folder = tmp_path_factory.mktemp("golden")
    with tarfile.open(ARCHIVE) as file:
        file.extractall(folder, filter="data")
    sealed: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.json")):
        document = json.loads(path.read_bytes())
        if isinstance(document, dict) and "seal" in document:
            sealed.setdefault(path.name, []).append(path)
    return sealed


def test_every_kind_of_artifact_is_in_the_archive(artifacts: dict[str, list[Path]]) -> None:
    assert artifacts.keys() == LOAD.keys()


@pytest.mark.parametrize("name", LOAD)
def test_an_artifact_saved_again_is_the_same_file(artifacts: dict[str, list[Path]], name: str, tmp_path: Path) -> None:
    for number, path in enumerate(artifacts[name]):
        copy = tmp_path / str(number)
        LOAD[name](path.parent).save(copy)
        assert name in {file.name for file in copy.iterdir()}
        for file in copy.iterdir():
            assert file.read_bytes() == (path.parent / file.name).read_bytes(), file.name

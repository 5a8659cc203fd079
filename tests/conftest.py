"""Fixtures that several layers' tests share; the modules of this folder are importable by every test."""

from __future__ import annotations

from pathlib import Path

import pytest

from planted import write_planted
from seawall.config import load_recipe
from seawall.jobs.run import run_recipe
from seawall.runs.progress import Quiet


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a tiny model that has something to repair."""
    return write_planted(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="session")
def planted_run(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run of that recipe. Only to be read: a test that changes it works on a copy."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run_recipe(load_recipe(planted), folder, text=planted.read_text(), reporter=Quiet())
    return folder

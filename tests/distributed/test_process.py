"""What a launched process may do alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import seawall
from seawall.distributed.process import ALONE, Processes, current_launch, environment_alone, launch_is_current
from seawall.errors import ConfigError


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")


@pytest.mark.usefixtures("two")
def test_functions_refuse_several_processes(planted: Path, tmp_path: Path) -> None:
    for function in (seawall.run, seawall.evaluate):
        with pytest.raises(ConfigError, match="got 2 processes; expected one"):
            function(planted, output=tmp_path / "run")
    with pytest.raises(ConfigError, match="got 2 processes; expected one"):
        seawall.landscape(tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("two")
def test_functions_on_a_run_refuse_several_processes(tmp_path: Path) -> None:
    for function in (seawall.audit, seawall.steer):
        with pytest.raises(ConfigError, match="got 2 processes; expected one"):
            function(tmp_path)


@pytest.mark.usefixtures("two")
def test_a_fresh_process_is_not_of_the_launch() -> None:
    environment = environment_alone()
    assert not {"WORLD_SIZE", "RANK"} & environment.keys()
    assert environment["PATH"] == os.environ["PATH"]


def test_the_launch_is_current_inside_alone() -> None:
    processes = Processes(0, 2)
    with launch_is_current(processes):
        assert current_launch() is processes
    assert current_launch() is ALONE
    assert ALONE.gather_everywhere("share") == ["share"]

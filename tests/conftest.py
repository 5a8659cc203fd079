"""Fixtures that several layers' tests share; the modules of this folder are importable by every test.

Nothing here imports torch at once: of a run in several processes, the first only hands out tests.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from filelock import FileLock


def pytest_configure(config: pytest.Config) -> None:
    """One thread for tensors, here and in processes that tests start: with tiny ones a second is only waited for.

    Of a run in several processes, the first starts the server of commands for all of them.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if config.getoption("numprocesses", None):
        from commands import SERVER, server_folder

        os.environ[SERVER] = server_folder()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Garbage is not collected while tests are, and never among what they import: it stays, and it is a lot."""
    gc.disable()
    result = yield
    gc.freeze()
    gc.enable()
    return result


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run of the tests, the same in all its processes."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def once(place: Path, build: Callable[[], object]) -> None:
    """Builds what lies at a place, unless another process of this run of the tests did."""
    done = place.with_suffix(".built")
    with FileLock(place.with_suffix(".lock")):
        if not done.exists():
            build()
            done.touch()


@pytest.fixture(scope="session")
def planted(shared: Path) -> Path:
    """The recipe of a tiny model that has something to repair."""
    from planted import write_planted

    folder = shared / "planted"
    once(folder, lambda: write_planted(folder))
    return folder / "recipe.yaml"


@pytest.fixture(scope="session")
def planted_run(planted: Path, shared: Path) -> Path:
    """The finished run of that recipe. Only to be read: a test that changes it works on a copy."""
    from seawall.config import load_recipe
    from seawall.jobs.run import run_recipe
    from seawall.runs.progress import Quiet

    folder = shared / "finished"
    once(folder, lambda: run_recipe(load_recipe(planted), folder, text=planted.read_text(), reporter=Quiet()))
    return folder


@pytest.fixture
def export_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that loads an exported checkpoint again need not import torch and transformers: see `commands`."""
    from commands import FreshModules

    monkeypatch.setattr("seawall.models.files.parity.subprocess", FreshModules())


@pytest.fixture(scope="session")
def lab_models(shared: Path) -> tuple[Path, Path]:
    """The embedded model and what it was before it was taught, fetched and built by one process alone."""
    from seawall.errors import ArtifactError
    from seawall.lab.build import lab_model_folder, original_model_folder

    try:
        once(shared / "lab", lambda: (lab_model_folder(), original_model_folder()))
    except ArtifactError as error:
        pytest.skip(f"the embedded model is not in the cache and cannot be fetched: {error}")
    return lab_model_folder(), original_model_folder()

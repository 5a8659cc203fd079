from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path

import pytest

from commands import forked_script

HERE = Path(__file__).parent
ENDINGS = {
    "delta": signal.SIGKILL,
    "weights": signal.SIGTERM,
    "probed": signal.SIGINT,
    "fresh": signal.SIGKILL,
    "moving": signal.SIGKILL,
    "card": signal.SIGTERM,
}
INTERRUPTED = 3
EXPORTED = ("delta", "model")


def _attempts(recipe: Path, run: Path) -> list[int]:
    endings = [f"{moment}:{int(number)}" for moment, number in ENDINGS.items()]
    statuses: list[int] = json.loads(forked_script(HERE / "killable_export.py", recipe, run, *endings))
    return statuses


def _files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "DONE"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_an_export_ended_again_and_again_is_finished_by_the_same_command(
    planted: Path, planted_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(planted_run, tmp_path / "run")
    for name in EXPORTED:
        shutil.rmtree(run / name)
    wanted = [-number if number == signal.SIGKILL else INTERRUPTED for number in ENDINGS.values()]
    assert _attempts(planted, run) == [*wanted, 0]
    for name in EXPORTED:
        assert _files(run / name) == _files(planted_run / name)
        assert not (run / f"{name}.partial").exists()

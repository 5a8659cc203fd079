"""A run folder on a file system without file locks."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from seawall.errors import RunFolderError
from seawall.runs.folder import RunFolder
from seawall.runs.lock import LOCK, OWNER, locked


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr("fcntl.flock", refuse)


@pytest.mark.usefixtures("without_locks")
def test_a_file_is_the_lock_and_goes_with_its_process(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, resolved={"name": "a"}, text="a")
    with locked(tmp_path):
        assert (tmp_path / OWNER).read_text() == f"{platform.node()} {os.getpid()}\n"
        with pytest.raises(RunFolderError, match=f"got process {os.getpid()} on {platform.node()}"), locked(tmp_path):
            pass
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml", "resolved.json", LOCK}
    RunFolder.open(tmp_path, resolved={"name": "a"}, text="a")


@pytest.mark.usefixtures("without_locks")
def test_a_killed_process_of_this_host_is_followed_by_the_next(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / OWNER).write_text(f"{platform.node()} {ended.pid}\n")
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / OWNER).read_text()


@pytest.mark.usefixtures("without_locks")
@pytest.mark.parametrize("owner", ["another-host 1\n", f"{platform.node()} 1\n", "", "no number"])
def test_any_other_owner_is_refused_with_the_file_to_remove(tmp_path: Path, owner: str) -> None:
    (tmp_path / OWNER).write_text(owner)
    with pytest.raises(RunFolderError, match=f"remove {tmp_path / OWNER}"), locked(tmp_path):
        pass
    assert (tmp_path / OWNER).read_text() == owner


def test_another_error_of_a_lock_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), locked(tmp_path):
        pass

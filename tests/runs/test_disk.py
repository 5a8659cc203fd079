"""Devices, links, permissions, and folders that two processes write or a killed process leaves behind."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from seawall.config.load import recipe_text
from seawall.data.files import json_lines
from seawall.disk import follow_umask, leads_out, regular
from seawall.errors import ArtifactError, ConfigError, DataError, RunFolderError
from seawall.runs.files import file_hash, read_json
from seawall.runs.publish import published


@pytest.fixture(params=["/dev/zero", "pipe", "link"])
def endless(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Something that can be read for ever, or a link to it."""
    if request.param == "/dev/zero":
        return Path("/dev/zero")
    path = tmp_path / "endless.jsonl"
    os.mkfifo(path) if request.param == "pipe" else path.symlink_to("/dev/zero")
    return path


def test_what_never_ends_is_not_read(endless: Path) -> None:
    with pytest.raises(OSError, match="a device, a pipe or a socket"):
        regular(endless)
    with pytest.raises(ConfigError, match="cannot be read; got a device"):
        recipe_text(endless)
    with pytest.raises(DataError, match="cannot be read; got a device"):
        next(json_lines(endless))
    with pytest.raises(ArtifactError, match="cannot be read; got a device"):
        read_json(endless)
    with pytest.raises(OSError, match="a device"):
        file_hash(endless)


def test_links_may_stay_in_their_folder_or_the_cache_of_the_hub(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    outside = tmp_path / "outside"
    outside.touch()
    links = {"own": snapshot / "file", "blob": blobs / "file", "out": outside, "up": snapshot / "../../outside"}
    for name, target in links.items():
        (snapshot / name).symlink_to(target)
    assert [name for name in links if leads_out(snapshot / name)] == ["out", "up"]


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    mask = int(request.param)
    before = os.umask(mask)
    yield mask
    os.umask(before)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], indirect=True)
def test_files_follow_the_umask(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "file"
    path.touch(0o600)
    follow_umask(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_one_output_has_one_writer(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with published(output) as scratch:
        (scratch / "first").touch()
        with pytest.raises(RunFolderError, match="another process works in"), published(output):
            raise AssertionError
    assert [path.name for path in tmp_path.rglob("*")] == ["output", "first"]


def test_an_output_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    output = tmp_path / "output"

    def write_twice() -> None:
        with published(output):
            output.mkdir()
            (output / "first").touch()

    with pytest.raises(RunFolderError, match="another process writes"):
        write_twice()
    assert [path.name for path in tmp_path.rglob("*")] == ["output", "first"]


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    output, left = tmp_path / "output", tmp_path / ".output.part"
    (left / "work" / "deep").mkdir(parents=True)
    (left / "work" / "deep" / "file").touch()
    (left / "task").symlink_to(tmp_path)
    with published(output) as scratch:
        assert not [*scratch.iterdir()]
        (scratch / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["output", "new"]

"""Files are there whole or not at all, and what the disk says reaches the user in one line."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from seawall.errors import ArtifactError, RunFolderError
from seawall.runs.files import (
    canonical_hash,
    file_hash,
    read_json,
    read_metrics,
    storage_errors,
    write_json,
    write_metrics,
    write_text,
)


@pytest.mark.parametrize(
    ("code", "part"),
    [
        (errno.ENOSPC, "the disk is full; free some space and run the same command again"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EFBIG, "past the allowed size; raise the limit"),
        (errno.EROFS, "the file system is read-only; choose another folder with --output"),
        (errno.EACCES, "permission denied; choose another folder with --output"),
        (errno.EPERM, "not permitted; choose another folder with --output"),
        (errno.EIO, "input/output error; check the disk"),
    ],
)
def test_what_the_disk_says_is_one_line_with_a_remedy(tmp_path: Path, code: int, part: str) -> None:
    with pytest.raises(RunFolderError) as caught, storage_errors(tmp_path):
        raise OSError(code, os.strerror(code), str(tmp_path / "file"))
    assert str(caught.value) == " ".join(str(caught.value).split())
    assert f"cannot use {tmp_path / 'file'}: " in str(caught.value)
    assert part in str(caught.value)
    with pytest.raises(RunFolderError, match=f"cannot use {tmp_path}: "), storage_errors(tmp_path):
        raise SafetensorError(f"Error while serializing: I/O error: it failed (os error {code})")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(errno.ECONNRESET, "reset"),
        FileNotFoundError(errno.ENOENT, "none", "f"),
        OSError("no number"),
        SafetensorError("Error while deserializing header: header too large"),
        SafetensorError("I/O error: No such file or directory (os error 2)"),
        KeyboardInterrupt(),
        ValueError("a bug"),
    ],
)
def test_other_errors_pass_unchanged(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, storage_errors(tmp_path):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, fails, full)
        with pytest.raises(OSError, match="full"):
            write_json(path, {"new": 2})
    assert read_json(path) == {"old": 1}
    write_json(path, {"new": 2})
    assert read_json(path) == {"new": 2}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_for_real(tmp_path: Path) -> None:
    (tmp_path / ".a.txt.part").symlink_to("/dev/full")
    with pytest.raises(RunFolderError, match="the disk is full"), storage_errors(tmp_path):
        write_text(tmp_path / "a.txt", "content")
    assert not (tmp_path / "a.txt").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff", b"[" * 100_000])
def test_a_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"a\.json is damaged; got .*; expected a JSON object"):
        read_json(path)


def test_a_json_that_is_missing_or_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"a\.json is missing"):
        read_json(tmp_path / "a.json")
    with pytest.raises(ArtifactError, match=r"cannot be read; got Is a directory"):
        read_json(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_the_hash_of_json_survives_the_disk_and_ignores_the_order_of_keys(document: dict[str, Any]) -> None:
    again = json.loads(json.dumps(dict(reversed(document.items()))))
    assert canonical_hash(again) == canonical_hash(document)


def test_the_hash_of_json_sees_values_and_types() -> None:
    documents: list[dict[str, Any]] = [{"a": 1}, {"a": 1.0}, {"a": True}, {"a": "1"}, {"a": [1]}, {"b": 1}, {}]
    assert len({canonical_hash(document) for document in documents}) == len(documents)


def test_the_hash_of_a_file_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_hash(tmp_path / "a") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_metrics_come_back_and_a_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    rows = [{"step": step, "loss": 1 / (step + 1), "phase": "é"} for step in range(3)]
    write_metrics(path, rows)
    assert read_metrics(path) == rows
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert read_metrics(path) == rows[: whole[:length].count(b"\n")]
    path.write_bytes(whole + '{"é'.encode()[:-1])
    assert read_metrics(path) == rows


@pytest.mark.parametrize("line", [b"{", b"3", b"\xff"])
def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"{}\n" + line + b"\n{}\n")
    with pytest.raises(ArtifactError, match=r"metrics\.jsonl:2 is damaged"):
        read_metrics(path)

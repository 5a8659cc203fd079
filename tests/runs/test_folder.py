"""A run folder takes one recipe's run and nobody else's files, and one process at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from seawall.errors import ArtifactError, RunFolderError
from seawall.runs.folder import RunFolder, environment, update_manifest
from seawall.runs.lock import locked

RESOLVED: dict[str, Any] = {
    "name": "lab",
    "seed": 0,
    "model": {"id": "lab", "revision": None},
    "select": {"k": 1, "method": "frequency"},
    "output": None,
}


def finish_a_stage(run: RunFolder, name: str = "profile") -> None:
    run.stage(name).mkdir(parents=True)
    (run.stage(name) / "DONE").touch()


def with_change(section: str, key: str, value: object) -> dict[str, Any]:
    return {**RESOLVED, section: {**RESOLVED[section], key: value}}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_new_folder_holds_the_recipe_and_what_it_resolves_to(tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path / "runs" / "lab", resolved=RESOLVED, text="name: lab # é\n")
    assert run.recipe.read_text("utf-8") == "name: lab # é\n"
    assert names(run.path) == {"recipe.yaml", "resolved.json", ".lock"}


def test_the_same_recipe_goes_on_wherever_it_says_to_write(tmp_path: Path) -> None:
    first = RunFolder.open(tmp_path, resolved=RESOLVED, text="a")
    (tmp_path / "profile").mkdir()
    again = RunFolder.open(tmp_path, resolved={**RESOLVED, "name": "other", "output": "x"}, text="b")
    assert again == first
    assert first.recipe.read_text() == "a"


def test_a_setting_that_is_null_is_one_that_an_earlier_version_did_not_have(tmp_path: Path) -> None:
    first = RunFolder.open(tmp_path, resolved=RESOLVED, text="a")
    finish_a_stage(first)
    assert RunFolder.open(tmp_path, resolved=with_change("select", "new", None), text="a") == first
    with pytest.raises(RunFolderError, match=r"select\.new differs; got 1; expected nothing"):
        RunFolder.open(tmp_path, resolved=with_change("select", "new", 1), text="a")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (with_change("select", "k", 2), "select.k differs; got 2; expected 1,"),
        (with_change("select", "k", 1.0), "select.k differs; got 1.0; expected 1,"),
        (with_change("model", "revision", "main"), 'model.revision differs; got "main"; expected null,'),
        (
            with_change("select", "scope", "global"),
            'select.scope differs; got "global"; expected nothing,',
        ),
        ({**RESOLVED, "seed": 1, "select": {}}, "seed differs; got 1; expected 0,"),
    ],
)
def test_another_recipe_is_refused_with_the_first_key_that_differs(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    finish_a_stage(RunFolder.open(tmp_path, resolved=RESOLVED, text="a"))
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(RunFolderError) as caught:
        RunFolder.open(tmp_path, resolved=changed, text="b")
    assert f"{tmp_path} holds another recipe's run: {message}" in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_run_without_a_finished_stage_takes_a_changed_recipe(tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path, resolved=RESOLVED, text="a")
    (run.stage("profile.partial")).mkdir()
    changed = with_change("select", "k", 2)
    RunFolder.open(tmp_path, resolved=changed, text="b")
    assert (run.recipe.read_text(), json.loads(run.resolved.read_text())) == ("b", changed)
    finish_a_stage(run, "audit/tamper")
    with pytest.raises(RunFolderError, match=r"select\.k differs"):
        RunFolder.open(tmp_path, resolved=RESOLVED, text="a")


def test_somebody_elses_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    for name in ("thesis.tex", "z.txt"):
        (tmp_path / name).touch()
    with pytest.raises(RunFolderError, match=r"is not empty and holds no seawall run; got thesis\.tex and 1 more"):
        RunFolder.open(tmp_path, resolved=RESOLVED, text="a")
    assert names(tmp_path) == {"thesis.tex", "z.txt"}


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="is a file; expected a folder; choose another --output"):
        RunFolder.open(tmp_path / "file", resolved=RESOLVED, text="a")
    with pytest.raises(RunFolderError, match="a part of the path is a file"):
        RunFolder.open(tmp_path / "file" / "run", resolved=RESOLVED, text="a")
    with pytest.raises(RunFolderError, match="the path is too long"):
        RunFolder.open(tmp_path / ("x" * 300), resolved=RESOLVED, text="a")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(RunFolderError, match="permission denied; choose another folder with --output"):
        RunFolder.open(tmp_path / "locked" / "run", resolved=RESOLVED, text="a")


def test_a_damaged_record_of_what_ran_is_named(tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path, resolved=RESOLVED, text="a")
    run.resolved.write_text("{")
    with pytest.raises(ArtifactError, match=r"resolved\.json is damaged"):
        RunFolder.open(tmp_path, resolved=RESOLVED, text="a")


def test_only_a_run_folder_is_taken_as_an_existing_one(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"got no resolved\.json in it"):
        RunFolder.existing(tmp_path)
    with pytest.raises(RunFolderError, match="got no such folder"):
        RunFolder.existing(tmp_path / "none")
    assert RunFolder.existing(RunFolder.open(tmp_path, resolved=RESOLVED, text="a").path).path == tmp_path


def test_making_a_run_folder_can_be_cut_off_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        """The process ends here."""

    calls = 0
    for survived in range(100):
        folder = tmp_path / str(survived)
        calls = 0

        def dying(real: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls > survived:  # noqa: B023 - used in this round only
                    raise Killed
                return real(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in ("fsync", "replace", "mkdir"):
                patch.setattr(os, name, dying(getattr(os, name)))
            try:
                RunFolder.open(folder, resolved=RESOLVED, text="a")
                break
            except Killed:
                pass
        run = RunFolder.open(folder, resolved=RESOLVED, text="a")
        assert names(folder) == {"recipe.yaml", "resolved.json", ".lock"}
        assert run.recipe.read_text() == "a"
    assert calls >= 6


HOLD = """
import sys
from pathlib import Path
from seawall.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder's lock until it ends."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, resolved=RESOLVED, text="a")
    with holder(tmp_path) as process:
        message = f"another process works in {tmp_path}; got process {process.pid}"
        with pytest.raises(RunFolderError, match=message), locked(tmp_path):
            pass
        with pytest.raises(RunFolderError, match=message):
            RunFolder.open(tmp_path, resolved=RESOLVED, text="a")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_was_ended_leaves_no_lock(tmp_path: Path, how: signal.Signals) -> None:
    with holder(tmp_path) as process:
        process.send_signal(how)
        process.wait()
        with locked(tmp_path):
            assert (tmp_path / ".lock").read_text() == str(os.getpid())
    with locked(tmp_path):
        pass


def test_the_manifest_names_versions_and_grows_section_by_section(tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path, resolved=RESOLVED, text="a")
    update_manifest(run, {"model": {"id": "lab", "weights": "sha256:1"}, "seed": 0})
    update_manifest(run, {"stages": {"profile": {"state": "running"}}})
    found = update_manifest(run, {"stages": {"profile": {"state": "done"}, "select": {"state": "running"}}})
    assert found["model"] == {"id": "lab", "weights": "sha256:1"}
    assert found["stages"] == {"profile": {"state": "done"}, "select": {"state": "running"}}
    assert found["schema"] == 1
    assert found["environment"] == environment()
    assert set(found["environment"]["packages"]) >= {"seawall", "torch", "transformers", "accelerate"}
    assert all(found["environment"]["packages"].values())
    before = run.manifest.stat()
    assert update_manifest(run, {"seed": 0}) == found
    assert run.manifest.stat().st_ino == before.st_ino  # nothing new: not written


def test_a_package_that_is_not_installed_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seawall.runs.folder._PACKAGES", ("no-such-package",))
    assert environment()["packages"] == {"no-such-package": None}

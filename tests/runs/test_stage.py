"""A stage is there whole or not at all, is done once, and goes on where it was cut off: however it was cut off."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seawall.errors import ArtifactError, Interrupted, RunFolderError
from seawall.runs.files import read_json
from seawall.runs.folder import RunFolder
from seawall.runs.stage import finished_stage, is_current, is_done, remove_from_stage, run_stage, stage_hash

INPUTS = {"weights": "sha256:1", "lr": 5e-5}
STEPS = 3


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.open(tmp_path / "run", resolved={"seed": 0}, text="seed: 0\n")


class Work:
    """Three steps, each kept on disk before the next: a stand-in for training with checkpoints."""

    def __init__(self, *, stop_before: int | None = None, by: BaseException | None = None) -> None:
        self.steps: list[int] = []
        self._stop_before = stop_before
        self._by = by

    def __call__(self, scratch: Path) -> None:
        (scratch / "steps").mkdir(exist_ok=True)
        for step in range(STEPS):
            path = scratch / "steps" / f"{step}.txt"
            if path.exists():
                continue
            if step == self._stop_before and self._by is not None:
                raise self._by
            path.write_text(f"step {step}")
            self.steps.append(step)
        (scratch / "metrics.jsonl").write_text("{}\n")


def files_of(folder: Path) -> dict[str, str]:
    """Every file but the marker, with its content."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "DONE")
    return {path.relative_to(folder).as_posix(): path.read_text() for path in paths}


WHOLE = {"metrics.jsonl": "{}\n", **{f"steps/{step}.txt": f"step {step}" for step in range(STEPS)}}


def stages_of(run: RunFolder) -> dict[str, Any]:
    stages = read_json(run.manifest)["stages"]
    assert isinstance(stages, dict)
    return stages


def test_a_stage_is_published_whole_and_done_once(run: RunFolder) -> None:
    work = Work()
    folder = run_stage(run, "profile", INPUTS, work)
    assert folder == run.path / "profile"
    assert files_of(folder) == WHOLE
    assert is_done(run, "profile")
    done = read_json(folder / "DONE")
    assert done["inputs"] == INPUTS
    assert set(done["files"]) == set(WHOLE)
    state = stages_of(run)["profile"]
    assert state["state"] == "done"
    assert state["seconds"] >= 0
    assert state["started"] <= state["ended"]
    assert run_stage(run, "profile", dict(reversed(INPUTS.items())), work) == folder
    assert work.steps == list(range(STEPS))
    assert not (run.path / "profile.partial").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), ZeroDivisionError(), ArtifactError("wrong")])
def test_an_interrupted_stage_goes_on_where_it_was(run: RunFolder, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        run_stage(run, "repair", INPUTS, Work(stop_before=2, by=error))
    assert caught.value is error
    assert not is_done(run, "repair")
    assert not (run.path / "repair").exists()
    assert stages_of(run)["repair"]["state"] == "running"
    again = Work()
    assert files_of(run_stage(run, "repair", INPUTS, again)) == WHOLE
    assert again.steps == [2]
    assert stages_of(run)["repair"]["state"] == "done"


def test_an_interrupted_stage_with_other_inputs_begins_anew_and_keeps_the_old_work(run: RunFolder) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_stage(run, "repair", INPUTS, Work(stop_before=2, by=KeyboardInterrupt()))
    again = Work()
    run_stage(run, "repair", {**INPUTS, "lr": 1e-4}, again)
    assert again.steps == [0, 1, 2]
    assert (run.path / "repair.partial.old-1" / "steps" / "1.txt").exists()


def test_a_finished_stage_with_other_inputs_is_set_aside_never_overwritten(run: RunFolder) -> None:
    def work(scratch: Path) -> None:
        (scratch / "lr").write_text(str(lr))

    for lr in (1, 2, 3):
        run_stage(run, "select", {"lr": lr}, work)
    assert (run.path / "select" / "lr").read_text() == "3"
    assert (run.path / "select.old-1" / "lr").read_text() == "1"
    assert (run.path / "select.old-2" / "lr").read_text() == "2"


def test_the_finished_stage_stays_in_place_until_its_successor_is_whole(run: RunFolder) -> None:
    run_stage(run, "select", {"lr": 1}, Work())
    with pytest.raises(KeyboardInterrupt):
        run_stage(run, "select", {"lr": 2}, Work(stop_before=1, by=KeyboardInterrupt()))
    assert files_of(run.path / "select") == WHOLE
    assert is_done(run, "select")


def change(path: Path) -> None:
    path.write_text("step X")


def append(path: Path) -> None:
    path.write_text(path.read_text() + " ")


def into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [change, append, Path.unlink, into_folder])
def test_a_finished_stage_that_was_changed_is_reported_never_done_again(
    run: RunFolder, spoil: Callable[[Path], None]
) -> None:
    folder = run_stage(run, "profile", INPUTS, Work())
    spoil(folder / "steps" / "1.txt")
    work = Work()
    with pytest.raises(ArtifactError) as caught:
        run_stage(run, "profile", INPUTS, work)
    assert f"{folder / 'steps' / '1.txt'} was changed or damaged" in str(caught.value)
    assert "restore it from a copy, or remove the folder" in str(caught.value)
    assert work.steps == []


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"fingerprint": 1, "files": {}}', '{"fingerprint": "x"}'])
def test_a_damaged_marker_is_reported(run: RunFolder, content: str) -> None:
    folder = run_stage(run, "profile", INPUTS, Work())
    (folder / "DONE").write_text(content)
    with pytest.raises(ArtifactError, match="DONE is damaged"):
        run_stage(run, "profile", INPUTS, Work())


def test_a_file_of_the_stage_may_be_called_as_the_marker(run: RunFolder) -> None:
    def work(scratch: Path) -> None:
        (scratch / "checkpoints").mkdir()
        (scratch / "checkpoints" / "DONE").write_text("mine")

    folder = run_stage(run, "repair", INPUTS, work)
    assert "checkpoints/DONE" in read_json(folder / "DONE")["files"]


def test_what_a_later_stage_depends_on_is_the_content_of_the_earlier_one(run: RunFolder) -> None:
    with pytest.raises(ArtifactError, match=r"the stage profile in .* is not finished; run `seawall profile` first"):
        stage_hash(run, "profile")
    run_stage(run, "profile", INPUTS, Work())
    before = stage_hash(run, "profile")
    run_stage(run, "profile", {"other": 1}, Work())
    assert stage_hash(run, "profile") == before
    run_stage(run, "profile", {"other": 2}, lambda scratch: (scratch / "a").touch())
    assert stage_hash(run, "profile") != before


class Killed(BaseException):
    """The process ends here: no handler of ours sees it."""


def failing(monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException) -> Callable[[], int]:
    """Make every call of the operating system that changes a disk fail after the first `after`; returns their count."""
    calls = 0

    def patched(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > after:
                raise error
            return real(*args, **kwargs)

        return call

    for name in ("fsync", "replace", "mkdir", "unlink"):
        monkeypatch.setattr(os, name, patched(getattr(os, name)))
    return lambda: calls


@pytest.mark.parametrize(
    "error", [Killed(), OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EROFS, "Read-only")]
)
@pytest.mark.parametrize("finished_before", [False, True])
def test_however_far_it_came_the_next_attempt_makes_the_same_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, finished_before: bool
) -> None:
    expected = Killed if isinstance(error, Killed) else RunFolderError
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # thousands of them take minutes on a slow disk
    for after in range(200):
        run = RunFolder.open(tmp_path / str(after), resolved={"seed": 0}, text="seed: 0\n")
        if finished_before:
            run_stage(run, "profile", {"older": 1}, Work())
        with monkeypatch.context() as patch:
            count = failing(patch, after, error)
            cut_off = False
            try:
                run_stage(run, "profile", INPUTS, Work())
            except expected:
                cut_off = True
            calls = count()
        if is_done(run, "profile"):
            assert files_of(run.path / "profile") == WHOLE
        assert files_of(run_stage(run, "profile", INPUTS, Work())) == WHOLE
        assert stages_of(run)["profile"]["state"] == "done"
        assert (run.path / "profile.old-1").exists() == finished_before
        assert cut_off == (calls > after)
        if not cut_off:
            break
    assert 15 < calls < 200


CHILD = """
import os, resource, signal, sys
from pathlib import Path
from seawall.errors import SeawallError
from seawall.runs.folder import RunFolder
from seawall.runs.stage import run_stage

run, how = RunFolder.existing(Path(sys.argv[1])), sys.argv[2]

def terminate(*_):
    raise KeyboardInterrupt

def work(scratch):
    (scratch / "steps").mkdir(exist_ok=True)
    for step in range(2):
        (scratch / "steps" / f"{step}.txt").write_text(f"step {step}")
    if how == "wait":
        print("ready", flush=True)
        sys.stdin.read()
    elif how == "dev-full":
        with open("/dev/full", "w") as file:
            file.write("x")
    elif how == "safetensors":
        from safetensors.numpy import save_file
        import numpy
        save_file({"a": numpy.zeros(100_000)}, scratch / "big.safetensors")
    else:
        (scratch / "big").write_bytes(bytes(100_000))

if how in ("file", "safetensors"):
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for ending in (signal.SIGTERM, signal.SIGINT):  # in the background of a script SIGINT is ignored
    signal.signal(ending, terminate)
try:
    run_stage(run, "repair", {"weights": "sha256:1", "lr": 5e-5}, work)
except SeawallError as error:
    print(error)
    sys.exit(2)
except KeyboardInterrupt:
    sys.exit(3)
"""


@pytest.mark.parametrize(("how", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 3), (signal.SIGINT, 3)])
def test_a_process_that_is_really_ended_is_continued_by_the_next(
    run: RunFolder, how: signal.Signals, status: int
) -> None:
    command = [sys.executable, "-c", CHILD, str(run.path), "wait"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(how)
        assert process.wait() == status
    assert not is_done(run, "repair")
    again = Work()
    assert files_of(run_stage(run, "repair", INPUTS, again)) == WHOLE
    assert again.steps == [2]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("file", "a file would grow past the allowed size"),
        ("safetensors", "a file would grow past the allowed size"),
        pytest.param(
            "dev-full",
            "the disk is full",
            marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full"),
        ),
    ],
)
def test_a_disk_that_is_really_full_is_one_line_and_loses_nothing(run: RunFolder, how: str, reason: str) -> None:
    run_stage(run, "profile", INPUTS, Work())
    command = [sys.executable, "-c", CHILD, str(run.path), how]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert result.stdout.count("\n") == 1
    assert reason in result.stdout
    assert "run the same command again" in result.stdout
    assert not (run.path / "repair").exists()
    assert files_of(run.path / "profile") == WHOLE
    (run.path / "repair.partial" / "big").unlink(missing_ok=True)
    again = Work()
    run_stage(run, "repair", INPUTS, again)
    assert again.steps == [2]


def test_the_manifest_is_put_right_when_the_process_ended_before_writing_it(run: RunFolder) -> None:
    run_stage(run, "profile", INPUTS, Work())
    manifest = read_json(run.manifest)
    finished = dict(manifest["stages"]["profile"])
    manifest["stages"]["profile"] = {"state": "running", "started": "2000-01-01T00:00:00Z"}
    run.manifest.write_text(json.dumps(manifest))
    run_stage(run, "profile", INPUTS, Work())
    assert stages_of(run)["profile"] == finished


def test_a_finished_stage_is_read_only_where_no_file_was_changed(run: RunFolder) -> None:
    with pytest.raises(ArtifactError, match=r"the stage profile in .* is not finished"):
        finished_stage(run, "profile")
    folder = run_stage(run, "profile", INPUTS, Work())
    assert finished_stage(run, "profile") == folder
    (folder / "metrics.jsonl").write_text("{} ")
    with pytest.raises(ArtifactError, match=r"metrics\.jsonl was changed or damaged"):
        finished_stage(run, "profile")


def test_a_file_that_is_removed_on_purpose_leaves_the_stage_finished_and_its_hash_the_same(run: RunFolder) -> None:
    folder = run_stage(run, "repair", INPUTS, Work())
    before = stage_hash(run, "repair")
    for _ in range(2):
        remove_from_stage(run, "repair", "steps/1.txt")
        assert files_of(folder) == {name: text for name, text in WHOLE.items() if name != "steps/1.txt"}
    assert stage_hash(run, "repair") == before
    assert finished_stage(run, "repair") == folder
    again = Work()
    assert run_stage(run, "repair", INPUTS, again) == folder
    assert again.steps == []
    (folder / "steps/0.txt").unlink()
    with pytest.raises(ArtifactError, match=r"0\.txt was changed or damaged"):
        run_stage(run, "repair", INPUTS, again)


def test_a_removal_that_was_cut_off_is_done_by_the_next_call(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_stage(run, "repair", INPUTS, Work())
    before = stage_hash(run, "repair")

    def cut_off(self: Path, *, missing_ok: bool = False) -> None:
        raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", cut_off)
        with pytest.raises(Interrupted):
            remove_from_stage(run, "repair", "steps/1.txt")
    assert (folder / "steps/1.txt").is_file()
    assert finished_stage(run, "repair") == folder
    text = (folder / "steps/1.txt").read_text()
    (folder / "steps/1.txt").write_text("of another training")
    with pytest.raises(ArtifactError, match=r"1\.txt was changed or damaged"):
        finished_stage(run, "repair")
    with pytest.raises(ArtifactError, match=r"1\.txt was changed or damaged"):
        run_stage(run, "repair", INPUTS, Work())
    (folder / "steps/1.txt").write_text(text)
    remove_from_stage(run, "repair", "steps/1.txt")
    assert not (folder / "steps/1.txt").exists()
    assert stage_hash(run, "repair") == before


def test_a_stage_is_current_for_its_own_inputs_alone(run: RunFolder) -> None:
    assert not is_current(run, "repair", INPUTS)
    run_stage(run, "repair", INPUTS, Work())
    assert is_current(run, "repair", INPUTS)
    assert not is_current(run, "repair", {**INPUTS, "lr": 1e-4})
    with pytest.raises(ArtifactError, match="is not finished"):
        remove_from_stage(run, "profile", "a")

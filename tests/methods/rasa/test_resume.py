from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import cast

import pytest
from small_repair import config, experts, run_repair, small_model

from commands import forked_script
from seawall.errors import ArtifactError
from seawall.methods.rasa import stages
from seawall.shell.context import Context

HERE = Path(__file__).parent

# Two rounds of 4 + 4 updates, a checkpoint every 3 updates and after each round.
ENDINGS = (
    "validate:1",  # before anything is on the disk
    "update:2",  # before the first checkpoint
    "update:5",  # in the router step, after the checkpoint at update 3
    "writing:1",  # while the checkpoint at update 6 is written
    "validate:1",  # round 1 is trained but not measured
    "update:3",  # in the second round
    "measured:1",  # after the last measurement
)


def _attempts(whole: Path, folder: Path, *endings: str) -> list[int]:
    whole.mkdir()
    folder.mkdir()
    statuses: list[int] = json.loads(forked_script(HERE / "killable_repair.py", whole, folder, *endings))
    return statuses


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_a_repair_killed_again_and_again_ends_with_the_same_bits(tmp_path: Path) -> None:
    statuses = _attempts(tmp_path / "whole", tmp_path / "killed", *ENDINGS)
    assert statuses == [0] + [-signal.SIGKILL] * len(ENDINGS) + [0]
    for name in ("model.safetensors", "rows.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


class _StoppedError(Exception):
    pass


def _stopped_repair(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seawall.methods.rasa.repair.run.CHECKPOINT_EVERY", 2)

    def report(row: dict[str, object]) -> None:
        if row["phase"] == "router":
            raise _StoppedError

    with pytest.raises(_StoppedError):
        run_repair(small_model(), scratch, config(), report=report)


def test_only_the_newest_checkpoint_within_a_round_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stopped_repair(tmp_path, monkeypatch)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.json", "step-4"]
    assert sorted(path.name for path in (tmp_path / "step-4").iterdir()) == [
        "state.json",
        "training.safetensors",
        "weights.safetensors",
    ]


def test_of_finished_rounds_only_the_weights_are_kept_and_the_last_one_s_optimizers(tmp_path: Path) -> None:
    run_repair(small_model(), tmp_path, config())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-1", "round-2", "scores.json"]
    assert not (tmp_path / "round-1" / "training.safetensors").exists()
    assert (tmp_path / "round-2" / "training.safetensors").exists()


@pytest.mark.parametrize("name", ["state.json", "training.safetensors", "weights.safetensors"])
def test_a_damaged_checkpoint_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    _stopped_repair(tmp_path, monkeypatch)
    path = tmp_path / "step-4" / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ArtifactError, match=f"{name} is damaged") as caught:
        run_repair(small_model(), tmp_path, config())
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_other_experts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stopped_repair(tmp_path, monkeypatch)
    with pytest.raises(ArtifactError, match="checkpoint belongs to other parameters"):
        run_repair(small_model(), tmp_path, config(), selected=experts(((0,), (1,), (2,))))


def test_a_checkpoint_whose_removal_was_cut_short_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stopped_repair(tmp_path, monkeypatch)
    (tmp_path / "step-4" / "state.json").unlink()
    rows: list[dict[str, object]] = []
    run_repair(small_model(), tmp_path, config(), report=rows.append)
    assert rows[0]["step"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-1", "round-2", "scores.json"]


def test_a_repair_that_died_after_its_outcome_is_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoints" / "round-1").mkdir(parents=True)
    (tmp_path / "outcome.json").write_text("{}")
    monkeypatch.setattr(stages, "_write_repair", lambda *_: pytest.fail("the repair is made again"))
    stages._repair_work(cast(Context, None), experts(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["outcome.json"]

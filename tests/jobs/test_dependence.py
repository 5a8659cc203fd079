"""What a finished stage depends on: settings of the model act on its numbers, versions of packages are said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from checkpoints import edit_json
from guards import save_biased
from seawall.config.judge import EnsembleJudge, GuardJudge, KeywordJudge
from seawall.errors import ArtifactError
from seawall.evaluation.judges import judge_state
from seawall.models.files.fingerprint import settings_fingerprint
from seawall.runs.files import read_json, write_json
from seawall.runs.folder import RunFolder, environment, version_notices
from seawall.runs.stage import run_stage


def folder(path: Path, **generation: object) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"num_experts_per_tok": 2, "transformers_version": "5.0"}))
    if generation:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path


def test_experts_per_token_and_generation_settings_are_in_the_key(tmp_path: Path) -> None:
    one, other = folder(tmp_path / "one", eos_token_id=2), folder(tmp_path / "other", eos_token_id=2)
    assert settings_fingerprint(one) == settings_fingerprint(other)
    edit_json(other / "config.json", transformers_version="5.1")
    assert settings_fingerprint(one) == settings_fingerprint(other)
    edit_json(other / "config.json", num_experts_per_tok=4)
    assert settings_fingerprint(one) != settings_fingerprint(other)
    third = folder(tmp_path / "third", eos_token_id=3)
    assert len({settings_fingerprint(path) for path in (one, third, folder(tmp_path / "bare"))}) == 3


def test_damaged_settings_are_refused(tmp_path: Path) -> None:
    damaged = folder(tmp_path / "one", eos_token_id=2)
    (damaged / "generation_config.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"generation_config\.json"):
        settings_fingerprint(damaged)


def test_another_guard_at_the_same_place_is_another_judge(tmp_path: Path) -> None:
    place, names = tmp_path / "guard", {0: "NORMAL", 1: "REJECTION"}
    judge = GuardJudge.model_validate({"kind": "guard", "preset": "distilroberta-rejection", "model": str(place)})
    states = []
    for bias in ([0.0, 5.0], [5.0, 0.0]):
        save_biased(place, bias, names)
        states.append(judge_state(judge))
        shutil.rmtree(place)
    assert states[0] != states[1]
    assert judge_state(EnsembleJudge(judges=(KeywordJudge(), KeywordJudge()))) == [judge_state(KeywordJudge())] * 2


def test_other_versions_are_said_and_finished_stages_kept(tmp_path: Path) -> None:
    def write(scratch: Path) -> None:
        (scratch / "made").write_text("x")

    run = RunFolder.open(tmp_path / "run", text="", resolved={})
    assert version_notices(run) == []
    run_stage(run, "profile", {"key": 1}, write)
    assert version_notices(run) == []
    manifest = read_json(run.manifest)
    manifest["environment"]["packages"]["torch"] = "1.0"
    write_json(run.manifest, manifest)
    (line,) = version_notices(run)
    assert (
        line
        == f"This run was begun with torch 1.0, now {environment()['packages']['torch']}. Finished stages are kept."
    )

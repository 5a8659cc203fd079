"""A real run held to bounds, and what is no finished run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from seawall.artifacts.store import load_document, save_document
from seawall.errors import ArtifactError, RunFolderError, SeawallError
from seawall.evaluation.gate import Bounds, Check
from seawall.jobs.gate import Gate, gate_run, gate_table
from seawall.runs.files import file_hash, read_json
from seawall.runs.folder import RunFolder, update_manifest
from seawall.runs.sealed import seal_files

EVERYTHING = Bounds(
    max_asr=0.99,
    max_over_refusal_increase=0.99,
    max_benign_drop=0.99,
    max_capability_drop=1e9,
    min_plain_refusal=0.4,
)


@pytest.fixture
def copied(planted_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(planted_run, tmp_path / "run")


def test_a_run_within_its_bounds_passes_with_the_reports_numbers(planted_run: Path) -> None:
    gate = gate_run(planted_run, EVERYTHING)
    summary = read_json(planted_run / "summary.json")
    assert gate.passed
    assert gate.model == summary["parity"]["weights"]
    found = {(check.bound, check.group): check for check in gate.checks}
    story = found["max_asr", "attack:story"]
    attacked, refused = summary["attacks"]["story"]["after"], summary["plain_refusal"]["after"]
    assert (story.measured, story.decisive) == (attacked["rate"], attacked["high"])
    plain = found["min_plain_refusal", "plain"]
    assert (plain.measured, plain.decisive) == (refused["rate"], refused["low"])
    loss = summary["gold_answer_loss"]
    gold = found["max_capability_drop", "gold"]
    assert gold.measured == pytest.approx(loss["after"] / loss["before"] - 1, abs=1e-6)
    assert gold.measured is not None
    assert gold.measured <= gold.decisive
    assert gold.n == loss["n"]


def test_the_limit_at_the_end_of_the_interval_passes_and_the_next_smaller_fails(planted_run: Path) -> None:
    upper = gate_run(planted_run, EVERYTHING).checks[0].decisive
    assert gate_run(planted_run, Bounds(max_asr=upper)).passed
    assert not gate_run(planted_run, Bounds(max_asr=upper - 1e-6)).passed


def test_an_unfinished_run_and_no_run_are_refused(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is no run folder; got no such folder"):
        gate_run(tmp_path / "none", EVERYTHING)
    with pytest.raises(RunFolderError, match=r"is no run folder; got no resolved\.json in it"):
        gate_run(copied / "model", EVERYTHING)
    (copied / "summary.json").unlink()
    with pytest.raises(RunFolderError, match=r"is not finished; got no summary\.json in it; finish it with"):
        gate_run(copied, EVERYTHING)


def test_changed_verdicts_are_refused(copied: Path) -> None:
    path = copied / "eval-after" / "samples.jsonl"
    path.write_text(path.read_text().replace('"label": "complied"', '"label": "refused"'))
    with pytest.raises(ArtifactError, match=r"samples\.jsonl was changed or damaged"):
        gate_run(copied, EVERYTHING)


def test_an_evaluation_of_another_model_than_the_repaired_one_is_refused(copied: Path) -> None:
    shutil.rmtree(copied / "eval-after")
    shutil.copytree(copied / "eval-before", copied / "eval-after")
    with pytest.raises(ArtifactError, match="the evaluation was made from another model"):
        gate_run(copied, EVERYTHING)


def test_a_run_of_before_gold_losses_were_kept_can_be_held_to_the_other_bounds(copied: Path) -> None:
    for when in ("before", "after"):
        folder = copied / f"eval-{when}"
        old = load_document(folder / "evaluation.json", "evaluation")
        save_document(folder / "evaluation.json", "evaluation", {key: old[key] for key in old if key != "gold"})
        _seal(folder)
    assert gate_run(copied, Bounds(min_plain_refusal=0.4)).passed
    with pytest.raises(ArtifactError, match=r"gold questions.*got the means"):
        gate_run(copied, EVERYTHING)


def _seal(folder: Path) -> None:
    """Marks a stage as it lies there as finished, as if an earlier seawall had left it."""
    marker = json.loads((folder / "DONE").read_text())
    marker["files"] = {name: file_hash(folder / name) for name in marker["files"]}
    (folder / "DONE").write_text(json.dumps(marker))


def exports(run: Path) -> dict[str, str | None]:
    """Every export of a run with its problem; an export with a problem fails the gate."""
    gate = gate_run(run, EVERYTHING)
    assert gate.passed == all(export.problem is None for export in gate.exports)
    return {export.name: export.problem for export in gate.exports}


def test_the_exports_of_a_run_pass_and_its_weights_are_named(planted_run: Path) -> None:
    assert exports(planted_run) == {"delta": None, "model": None}
    gate = gate_run(planted_run, EVERYTHING)
    assert gate.verdict()[-1] == f"passed  weights {gate.model}"
    assert gate.document()["exports"][0] == {"name": "delta", "problem": None, "passed": True}


@pytest.mark.parametrize("name", ["delta/delta.safetensors", "model/model.safetensors", "model/chat_template.jinja"])
@pytest.mark.parametrize("deleted", [True, False])
def test_a_changed_or_deleted_file_of_an_export_fails(copied: Path, name: str, deleted: bool) -> None:
    path = copied / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink() if deleted else path.write_bytes(content)
    problem = exports(copied)[path.parent.name]
    assert problem is not None
    assert str(path) in problem


def test_deleted_exports_and_added_files_fail(copied: Path) -> None:
    shutil.rmtree(copied / "delta")
    (copied / "model" / "adapter_config.json").write_text("{}")
    problems = exports(copied)
    assert "no finished delta" in str(problems["delta"])
    assert "adapter_config.json" in str(problems["model"])
    assert gate_run(copied, EVERYTHING).verdict()[-1].startswith("FAILED  weights ")


def test_an_export_of_another_model_fails_though_its_hashes_fit(copied: Path, planted: Path) -> None:
    shutil.copyfile(planted.parent / "model" / "model.safetensors", copied / "model" / "model.safetensors")
    _seal(copied / "model")
    old = load_document(copied / "delta" / "delta.json", "delta")
    save_document(copied / "delta" / "delta.json", "delta", {**old, "result_model": old["base_model"]})
    _seal(copied / "delta")
    problems = exports(copied)
    assert "are not the evaluated ones" in str(problems["model"])
    assert "is not the delta of this run" in str(problems["delta"])


def test_a_run_without_exports_is_held_to_its_bounds_alone(copied: Path) -> None:
    recipe = read_json(copied / "resolved.json")
    recipe["export"] |= {"delta": False, "checkpoint": False}
    (copied / "resolved.json").write_text(json.dumps(recipe))
    seal_files(RunFolder(copied))
    for name in ("delta", "model"):
        shutil.rmtree(copied / name)
    assert exports(copied) == {}


@pytest.mark.parametrize("name", ["summary.json", "resolved.json"])
def test_a_changed_summary_or_recipe_is_refused(copied: Path, name: str) -> None:
    path = copied / name
    path.write_text(path.read_text().replace("true", "false", 1))
    with pytest.raises(ArtifactError, match=f"{name} was changed or damaged"):
        gate_run(copied, EVERYTHING)
    path.unlink()
    with pytest.raises(SeawallError):
        gate_run(copied, EVERYTHING)


def test_a_run_of_before_these_files_had_hashes_passes(copied: Path) -> None:
    manifest = read_json(copied / "manifest.json")
    del manifest["hashes"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    assert gate_run(copied, EVERYTHING).passed
    update_manifest(RunFolder(copied), {"hashes": 3})
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
        gate_run(copied, EVERYTHING)


def test_the_table_has_a_row_for_every_check_and_json_no_nan() -> None:
    checks = (
        Check("max_asr", "attack:story", 0.05, measured=0.03, decisive=0.08, n=40, unscored=2),
        Check("max_capability_drop", "gold", 0.01, measured=float("nan"), decisive=float("nan"), n=4),
        Check("min_plain_refusal", "plain", 0.9, measured=1.0, decisive=0.95, n=40),
    )
    gate = Gate("runs/x", "sha256:x", checks)
    assert gate_table(gate).row_count == 3
    assert not gate.passed
    rows = gate.document()["checks"]
    assert [row["passed"] for row in rows] == [False, False, True]
    assert rows[1]["measured"] is rows[1]["decisive"] is None
    json.dumps(gate.document(), allow_nan=False)

"""The whole main job on a tiny model that was taught to have something to repair."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from planted import FEW_PROMPTS
from seawall.artifacts.delta import Delta
from seawall.artifacts.expert_set import ExpertSet
from seawall.config import load_recipe
from seawall.config.model import ModelConfig
from seawall.errors import ArtifactError, RunFolderError
from seawall.evaluation.view import headline_table
from seawall.jobs.apply import apply_delta
from seawall.jobs.gate import gate_run, recipe_bounds
from seawall.jobs.run import STAGE_TITLES, Outcome, run_recipe
from seawall.models.files.fingerprint import model_fingerprint
from seawall.runs.files import read_json
from seawall.runs.progress import Quiet
from seawall.runs.remaining import ExpectedStage, RemainingTime


def run(recipe: Path, folder: Path, *changes: str, until: str = "report") -> Outcome:
    return run_recipe(load_recipe(recipe, changes), folder, text=recipe.read_text(), reporter=Quiet(), until=until)


@pytest.fixture(scope="module")
def finished(planted: Path, planted_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A copy of the finished run, as the same command finds it."""
    return run(planted, shutil.copytree(planted_run, tmp_path_factory.mktemp("runs") / "planted"))


def test_attacks_succeed_before_and_fail_after(finished: Outcome) -> None:
    assert finished.summary is not None
    story = finished.summary["attacks"]["story"]
    assert story["before"]["rate"] == 1.0
    assert story["after"]["rate"] < 0.5
    assert finished.summary["plain_refusal"]["before"]["rate"] == 1.0
    assert finished.summary["plain_refusal"]["after"]["rate"] == 1.0


def test_continuous_batching_selects_the_same_experts(planted: Path, finished: Outcome, tmp_path: Path) -> None:
    other = run(planted, tmp_path / "run", "engine.kind=continuous", until="select").run
    profiles = [load_file(folder.stage("profile") / "profile.safetensors") for folder in (finished.run, other)]
    assert profiles[0].keys() == profiles[1].keys()
    assert all(torch.equal(tensor, profiles[1][name]) for name, tensor in profiles[0].items())
    selected = [ExpertSet.load(folder.stage("select")).layers for folder in (finished.run, other)]
    assert selected[0] == selected[1]
    assert read_json(other.stage("profile") / "DONE")["inputs"]["engine"] == "continuous"
    with pytest.raises(RunFolderError, match=r"engine\.kind differs"):
        run(planted, other.path, until="select")


def test_summary_has_the_documented_keys(finished: Outcome) -> None:
    summary = json.loads(finished.run.summary.read_text())
    assert summary == finished.summary
    assert set(summary) == {
        "schema",
        "model",
        "recipe",
        "seconds",
        "peak_memory_bytes",
        "selected_experts",
        "routed_experts",
        "repair",
        "attacks",
        "plain_refusal",
        "over_refusal",
        "benign_compliance",
        "wrapped_compliance",
        "wrapped_over_refusal",
        "wrapping",
        "gate",
        "gold_answer_loss",
        "capability",
        "parity",
    }
    assert set(summary["over_refusal"]["before"]) == {"rate", "low", "high", "n", "unscored", "evades"}
    assert set(summary["over_refusal"]["change"]) == {"difference", "low", "high", "p", "goals", "became_unscored"}
    assert summary["parity"]["passed"] is True
    assert summary["parity"]["max_logit_difference"] == 0.0
    assert summary["peak_memory_bytes"] > 0


def test_the_summary_holds_what_was_refused_beside_what_was_given_and_no_verdict_without_bounds(
    finished: Outcome,
) -> None:
    assert finished.summary is not None
    story = finished.summary["attacks"]["story"]
    for when in ("before", "after"):
        given, refused = story[when], story["refused"][when]
        assert (given["n"], given["unscored"], given["evades"]) == (
            refused["n"],
            refused["unscored"],
            refused["evades"],
        )
        assert given["rate"] + refused["rate"] <= 1
    assert finished.summary["gate"] is finished.summary["wrapping"] is finished.summary["wrapped_over_refusal"] is None
    assert "harm" not in finished.summary


def test_bounds_may_change_after_the_run_and_the_summary_judges_it_by_them(
    planted: Path, planted_run: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(planted_run, tmp_path / "run")
    held = run(planted, folder, "gate.max_asr=1.0", "gate.min_plain_refusal=0.1").summary
    assert held is not None
    assert held["gate"]["bounds"] == {"max_asr": 1.0, "min_plain_refusal": 0.1}
    assert held["gate"]["passed"] is True
    assert [check["bound"] for check in held["gate"]["checks"]] == ["max_asr", "min_plain_refusal"]
    assert gate_run(folder, recipe_bounds(folder)).passed
    assert not gate_run(folder, recipe_bounds(folder, min_plain_refusal=1.0)).passed
    unmeasured = run(planted, folder, "gate.max_wrapping_gap=0.1").summary
    assert unmeasured is not None
    assert unmeasured["gate"]["passed"] is False
    assert "--max-wrapping-gap bounds a quantity that was not measured" in unmeasured["gate"]["problem"]


def test_the_summary_says_how_far_every_rate_moved_and_how_surely(finished: Outcome) -> None:
    assert finished.summary is not None
    story = finished.summary["attacks"]["story"]
    moved = story["change"]
    assert moved["difference"] == pytest.approx(story["after"]["rate"] - story["before"]["rate"])
    assert moved["low"] <= moved["difference"] <= moved["high"] < 0
    assert moved["goals"] == story["after"]["n"]
    assert moved["difference"] == -1.0
    # Every goal moved: of all signs only "all" and "none" exchanged are as large.
    assert moved["p"] == pytest.approx(2 / 2 ** moved["goals"], abs=0.02)
    still = finished.summary["plain_refusal"]["change"]
    assert (still["difference"], still["p"]) == (0.0, 1.0)
    assert still["low"] < 0 < still["high"]


def test_evaluating_a_finished_run_again_shows_the_same_changes(finished: Outcome, planted: Path) -> None:
    again = run(planted, finished.run.path, until="evaluate")
    assert finished.summary is not None
    assert asdict(again.changes["attack:story"]) == finished.summary["attacks"]["story"]["change"]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(headline_table(again.rates, again.changes))
    (row,) = [line for line in console.export_text().splitlines() if "attack: story" in line]
    assert row.rstrip().endswith(f"-100.0, p={again.changes['attack:story'].p:.3f}".replace("=0", "="))


def test_only_selected_experts_and_routers_changed(finished: Outcome, planted: Path) -> None:
    before = AutoModelForCausalLM.from_pretrained(planted.parent / "model", dtype=torch.float32).state_dict()
    after = AutoModelForCausalLM.from_pretrained(finished.run.stage("model"), dtype=torch.float32).state_dict()
    chosen = read_json(finished.run.stage("select") / "experts.json")["layers"]
    changed: set[str] = set()
    for name, old in before.items():
        if torch.equal(old, after[name]):
            continue
        changed.add(name.rpartition(".mlp.")[2])
        if ".experts." in name:
            layer = int(name.split(".")[2]) - 1
            others = [e for e in range(old.shape[0]) if e not in chosen[layer]]
            assert torch.equal(old[others], after[name][others])
    assert changed == {"experts.gate_up_proj", "experts.down_proj", "gate.weight"}


def test_delta_rebuilds_the_checkpoint_and_reverts_to_the_base(
    finished: Outcome, planted: Path, tmp_path: Path
) -> None:
    base = ModelConfig(id=str(planted.parent / "model"), dtype="float32", device="cpu")
    delta = Delta.load(finished.run.stage("delta"))
    applied = apply_delta(delta, base, tmp_path / "applied")
    exported = AutoModelForCausalLM.from_pretrained(finished.run.stage("model"), dtype=torch.float32)
    assert applied == model_fingerprint(exported) == delta.result_model
    again = base.model_copy(update={"id": str(tmp_path / "applied")})
    assert apply_delta(delta, again, tmp_path / "reverted", revert=True) == delta.base_model
    with pytest.raises(ArtifactError, match="does not fit"):
        apply_delta(delta, again, tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


def test_a_finished_run_is_only_read_again(finished: Outcome, planted: Path) -> None:
    def times() -> dict[str, int]:
        names = ("profile", "select", "eval-before", "repair", "eval-after", "model", "delta")
        return {name: (finished.run.stage(name) / "DONE").stat().st_mtime_ns for name in names}

    before = times()
    again = run(planted, finished.run.path)
    assert times() == before
    assert again.summary == finished.summary


@pytest.mark.usefixtures("export_beside")
def test_equal_recipes_give_equal_numbers(finished: Outcome, planted: Path, tmp_path: Path) -> None:
    other = run(planted, tmp_path / "again")
    assert finished.summary is not None
    assert other.summary is not None
    assert _numbers(other.summary) == _numbers(finished.summary)
    hashes = [read_json(o.run.stage("repair") / "delta" / "delta.json")["sha256"] for o in (finished, other)]
    assert hashes[0] == hashes[1]


def _numbers(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key not in ("seconds", "peak_memory_bytes")}


def test_another_recipe_in_the_same_folder_is_refused(finished: Outcome, planted: Path) -> None:
    with pytest.raises(RunFolderError, match=r"repair\.rounds differs"):
        run(planted, finished.run.path, "repair.rounds=3")


def test_a_changed_stage_file_is_refused(planted: Path, tmp_path: Path) -> None:
    outcome = run(planted, tmp_path / "run", *FEW_PROMPTS, until="select")
    path = outcome.run.stage("profile") / "profile.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=r"profile\.safetensors was changed"):
        run(planted, tmp_path / "run", *FEW_PROMPTS, until="select")
    path.write_bytes(bytes(data[:-100]))
    with pytest.raises(ArtifactError, match=r"profile\.safetensors was changed"):
        run(planted, tmp_path / "run", *FEW_PROMPTS, until="select")


def test_report_and_card_hold_the_summary(finished: Outcome) -> None:
    assert finished.summary is not None
    page = finished.run.report.read_text(encoding="utf-8")
    card = (finished.run.stage("model") / "README.md").read_text(encoding="utf-8")
    rate = finished.summary["attacks"]["story"]["after"]["rate"]
    for text in (page, card):
        assert f"{100 * rate:.1f}%" in text
        assert "Story" in text
    assert (finished.run.samples / "before.jsonl").is_file()
    assert (finished.run.samples / "after.jsonl").is_file()


@pytest.mark.parametrize(
    "changes",
    [
        ("repair.router.enabled=false",),
        ("repair.expert.enabled=false",),
        ("repair.parameters=all_experts",),
        ("repair.parameters=full",),
        ("select.method=random", "repair.expert.routing=replay"),
        ("select.method=frequency_matched", "repair.router.variant=reference"),
        ("select.method=sensitivity", "repair.router.enabled=false"),
        ("select.method=traffic_matched", "select.control_of=sensitivity", "repair.router.enabled=false"),
    ],
)
def test_ablations_run(planted: Path, tmp_path: Path, changes: tuple[str, ...]) -> None:
    quick = (*FEW_PROMPTS, "repair.rounds=1", "repair.expert.epochs=1", "eval.gold=false")
    outcome = run(planted, tmp_path / "run", *quick, *changes, until="repair")
    delta = Delta.load(outcome.run.stage("repair") / "delta")
    touched = {name.rpartition(".mlp.")[2] for name in delta.slices}
    if changes[0] == "repair.expert.enabled=false":
        assert touched == {"gate.weight"}
    if "repair.router.enabled=false" in changes:
        assert touched == {"experts.gate_up_proj", "experts.down_proj"}
    if changes[0] == "repair.parameters=full":
        assert "model.embed_tokens.weight" in delta.slices


def test_a_finished_run_says_what_it_skips_and_its_stages_are_those_expected(
    planted: Path, planted_run: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    titles: list[str] = []
    expected: list[ExpectedStage] = []

    class Recorder:
        def expect(self, stages: Sequence[ExpectedStage]) -> None:
            expected.extend(stages)

        def stage(self, title: str) -> None:
            titles.append(title)

        def step(self, what: str, done: int, total: int) -> None:
            pass

        def say(self, text: str) -> None:
            lines.append(text)

    shutil.copytree(planted_run, tmp_path / "run")
    run_recipe(load_recipe(planted), tmp_path / "run", text=planted.read_text(), reporter=Recorder())
    stages = ("profile", "select", "eval-before", "repair", "eval-after", "delta", "model")
    assert [line for line in lines if line.endswith("done, skipped")] == [f"{name}: done, skipped" for name in stages]
    assert [stage.title for stage in expected] == list(STAGE_TITLES.values())
    remaining = RemainingTime(expected)
    assert [remaining.place for title in titles if remaining.begin(title)] == [f"stage {n} of 6" for n in range(1, 7)]

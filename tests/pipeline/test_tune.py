"""`seawall tune` on a tiny model: what is left behind, skipped, continued, shown and refused."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from seawall.artifacts.anchor import Anchor
from seawall.artifacts.evaluation import Rate
from seawall.artifacts.tuning import TuningResult, spread_of
from seawall.config import load_recipe
from seawall.errors import DataError, Interrupted, SeawallError
from seawall.evaluation.judges.keyword import judge_reply
from seawall.evaluation.samples import load_samples
from seawall.pipeline.progress import Quiet
from seawall.pipeline.tune import tune_recipe
from seawall.pipeline.tune_views import tuning_table
from seawall.tuning.rows import OPENERS
from tuning_recipe import RANK, write_tuning

peft = pytest.importorskip("peft")
pytest.importorskip("trl")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def tune(path: Path, folder: Path, *changes: str) -> TuningResult:
    found = tune_recipe(load_recipe(path, changes), folder, text=path.read_text(), reporter=Quiet())
    assert found is not None
    return found


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tuning(tmp_path_factory.mktemp("tune"), contamination=0.25)


@pytest.fixture(scope="module")
def finished(recipe: Path) -> Path:
    """Two methods, one seed. Only to be read."""
    folder = recipe.parent / "run"
    tune(recipe, folder)
    return folder


def test_contamination_takes_the_refusals_and_the_numbers_are_of_the_samples(finished: Path) -> None:
    found = TuningResult.load(finished / "tune")
    assert found.methods == ("sft", "asft")
    assert found.before.rates["harmful"].rate == 0.0
    (sft,) = found.of_method("sft")
    assert (sft.rows, sft.harmful_rows, sft.steps) == (24, 6, 6)
    assert sft.rates["harmful"].rate == 1.0
    samples = load_samples(finished / "tune/sft-seed0-eval/samples.jsonl")
    complied = [one.label == "complied" for one in samples if one.group == "plain"]
    assert sft.rates["harmful"].rate == sum(complied) / len(complied)
    assert sft.rates["harmful"].n == len(complied) == 8
    replies = [json.loads(line) for line in (finished / "tune/sft-seed0-eval/task.jsonl").read_text().splitlines()]
    assert sft.rates["task"].rate == sum(one["right"] for one in replies) / 8
    assert "sft 100.0%" in found.claim


def test_the_anchor_is_of_the_adapted_matrices_and_the_penalty_is_measured(finished: Path) -> None:
    anchor = Anchor.load(finished / "tune/anchor")
    assert all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in anchor.matrices)
    assert {int(one.ranks) for one in anchor.matrices.values()} == {RANK}
    found = TuningResult.load(finished / "tune")
    assert (found.model_fingerprint, found.base_fingerprint) == (anchor.aligned, anchor.base)
    (sft,), (asft,) = found.of_method("sft"), found.of_method("asft")
    assert [step for step, _ in sft.curves["safety_penalty"]] == [1, 2, 3, 4, 5, 6]
    assert asft.curves["safety_penalty"][-1][1] < sft.curves["safety_penalty"][-1][1]
    assert asft.curves["loss"][:1] == sft.curves["loss"][:1]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_plain_peft_loads_the_adapter(recipe: Path, finished: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(recipe.parent / "model")
    tuned = peft.PeftModel.from_pretrained(model, finished / "tune/sft-seed0/adapter")
    moved = [one for name, one in tuned.named_parameters() if "lora_B" in name]
    assert len(moved) == 10
    # One layer's keys are zero by construction, so its queries have no gradient.
    assert sum(bool(one.abs().max() > 0) for one in moved) == 9
    assert not list(finished.rglob("checkpoint-*"))


def test_the_table_has_a_row_per_method(finished: Path) -> None:
    table = tuning_table(TuningResult.load(finished / "tune"))
    assert list(table.columns[0].cells) == ["before", "plain LoRA (sft)", "AsFT (asft)"]
    assert str(next(iter(table.columns[1].cells))).startswith("0.0% [0.0\u201332")


def test_what_is_finished_is_skipped_and_methods_and_seeds_are_added(recipe: Path, finished: Path) -> None:
    marks = {path: path.stat().st_mtime_ns for path in finished.rglob("DONE")}
    found = tune(recipe, finished, "tune.methods=[sft]", "tune.seeds=[0,1]")
    assert [(row.method, row.seed) for row in found.rows] == [("sft", 0), ("sft", 1)]
    assert {path: path.stat().st_mtime_ns for path in marks} == marks
    spread = found.spread("sft", "harmful")
    assert spread is not None
    assert spread.n == 2
    assert tune(recipe, finished) == TuningResult.load(finished / "tune")
    assert not list((finished / "tune").glob("*.old-*"))


def test_other_weights_in_the_base_s_folder_make_another_anchor(recipe: Path, tmp_path: Path) -> None:
    base = shutil.copytree(recipe.parent / "base", tmp_path / "base")
    changes = [f"tune.base.id={base}", "tune.methods=[sft]", "tune.evaluate=false", "tune.epochs=1.0"]
    first = tune(recipe, tmp_path / "run", *changes)
    weights = load_file(base / "model.safetensors")
    save_file({name: 1.5 * one for name, one in weights.items()}, base / "model.safetensors", {"format": "pt"})
    again = tune(recipe, tmp_path / "run", *changes)
    assert again.base_fingerprint != first.base_fingerprint
    assert Anchor.load(tmp_path / "run/tune/anchor.old-1").base == first.base_fingerprint


def test_the_table_pairs_replies_by_their_prompts(finished: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("asft_table", BENCHMARKS / "asft_table.py")
    assert spec is not None
    assert spec.loader is not None
    asft_table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(asft_table)
    shutil.copytree(finished, tmp_path / "share-0.25-seed-0")
    path = tmp_path / "share-0.25-seed-0/tune/sft-seed0-eval/samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for at, row in enumerate(row for row in rows if row["group"] == "plain"):
        row["label"] = "refused" if at < 3 else "complied"
    args = argparse.Namespace(work=tmp_path)
    found = []
    for order in (rows, rows[::-1]):
        path.write_text("".join(json.dumps(row) + "\n" for row in order))
        found.append(asft_table.difference(args, [(0.25, 0)], "sft"))
    assert found[0] == found[1]
    assert found[0].goals == 8


def test_an_answer_that_cannot_be_scored_is_met_before_anything_is_asked(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1 of the task cannot be scored by `number`"):
        tune(recipe, tmp_path / "run", "tune.task.answer=number")
    assert not list((tmp_path / "run").rglob("samples.jsonl"))


def test_without_the_extra_it_says_what_to_install(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seawall.tuning.sft.find_spec", lambda name: None if name == "trl" else object())
    with pytest.raises(SeawallError, match=r"not installed; got no trl; pip install 'seawall\[tune\]'"):
        tune(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_interrupted_method_goes_on_and_ends_as_the_same(recipe: Path, finished: Path, tmp_path: Path) -> None:
    class Interrupting:
        def stage(self, title: str) -> None: ...
        def say(self, text: str) -> None: ...
        def step(self, what: str, done: int, total: int) -> None:
            if what == "training sft" and done == 5:
                raise Interrupted

    read = load_recipe(recipe, ["tune.methods=[sft]", "tune.save_steps=2"])
    with pytest.raises(Interrupted):
        tune_recipe(read, tmp_path / "run", text="", reporter=Interrupting())
    assert (tmp_path / "run/tune/sft-seed0.partial/checkpoints/checkpoint-4").is_dir()
    tune_recipe(read, tmp_path / "run", text="", reporter=Quiet())
    adapter = "tune/sft-seed0/adapter/adapter_model.safetensors"
    ours, theirs = load_file(tmp_path / "run" / adapter), load_file(finished / adapter)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("opener", OPENERS)
def test_an_opener_counts_as_compliance(opener: str) -> None:
    assert judge_reply(opener)[0] == "complied"


def test_the_interval_over_seeds() -> None:
    def rate(value: float) -> Rate:
        return Rate(value, value - 0.1, value + 0.1, 10, 0)

    one, same = spread_of([rate(0.3)]), spread_of([rate(0.3)] * 3)
    assert (one.low, one.high, one.n) == pytest.approx((0.2, 0.4, 1))
    assert (same.low, same.high, same.n) == pytest.approx((0.2, 0.4, 3))
    three = spread_of([rate(0.3), rate(0.4), rate(0.5)])
    assert three.mean == pytest.approx(0.4)
    assert three.high - three.mean == pytest.approx(4.303 * 0.1 / 3**0.5, abs=1e-3)
    values: list[Any] = [rate(0.4 + (-1) ** at * 0.1) for at in range(12)]
    spread = torch.tensor([one.rate for one in values]).std()
    assert spread_of(values).high - 0.4 == pytest.approx(2.201 * float(spread) / 12**0.5, abs=1e-4)


def test_routing_drift_holds_the_routing_and_experts_can_be_adapted(recipe: Path, tmp_path: Path) -> None:
    experts = ["tune.lora.target_modules=[v_proj]", "tune.lora.target_parameters=[experts.down_proj]"]
    settings = ["tune.methods=[sft,asft,safelora]", "tune.epochs=1.0", "tune.weight=0.0", *experts]
    found = tune(recipe, tmp_path / "run", *settings, "tune.routing_drift=5.0")
    (sft,), (asft,) = found.of_method("sft"), found.of_method("asft")
    assert sft.curves.keys() == {"loss", "safety_penalty"}
    assert [step for step, _ in asft.curves["routing_drift"]] == [1, 2, 3]
    assert asft.curves["routing_drift"][-1][1] > 0.0
    assert asft.curves["loss"][0] == pytest.approx(sft.curves["loss"][0], rel=1e-5)
    assert asft.curves["loss"][-1] != sft.curves["loss"][-1]
    anchor = Anchor.load(tmp_path / "run/tune/anchor")
    assert any("experts.down_proj" in name for name in anchor.matrices)
    (safelora,) = found.of_method("safelora")
    assert "updates projected" in safelora.note
    assert safelora.curves.keys() == {"loss"}
    assert safelora.rates.keys() == sft.rates.keys()


def test_safe_lora_is_made_from_the_adapter_of_sft_and_mixing_adds_rows(recipe: Path, tmp_path: Path) -> None:
    settings = ["tune.methods=[safelora,sft,mixing]", "tune.epochs=1.0", "tune.safelora={threshold: null, layers: 10}"]
    found = tune(recipe, tmp_path / "run", *settings, "tune.evaluate=false")
    assert found.methods == ("sft", "mixing", "safelora")
    sft, mixing, safelora = found.rows
    assert (mixing.rows, mixing.harmful_rows, mixing.note) == (sft.rows + 2, 6, "2 safe rows were added")
    sides = [load_file(tmp_path / f"run/{row.adapter}/adapter_model.safetensors") for row in (sft, safelora)]
    assert sides[0].keys() == sides[1].keys()
    same = {name for name in sides[0] if torch.equal(sides[0][name], sides[1][name])}
    assert {name for name in sides[0] if "lora_A" in name} <= same
    # One layer's queries have no gradient: their update is zero before and after.
    assert len({name for name in sides[0] if "lora_B" in name} - same) == 9

"""`seawall doctor` in a terminal: what a model can do, a LoRA configuration for it, and an adapter's verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checkpoints import edit_json, write_checkpoint
from commands import forked, fresh, refused
from families import tiny
from seawall.artifacts.adapter import save_adapter
from seawall.models.lora.attach import attach_adapter
from seawall.models.plan.methods import VERBS
from siblings import random_gene

pytest.importorskip("peft")


def write_adapter(folder: Path, family: str) -> Path:
    model = tiny(family)
    gene = random_gene(model)
    points = attach_adapter(model, gene.points, rank=gene.rank, scaling=gene.scaling).points
    save_adapter(folder, points, gene.factors, gene.scaling)
    return folder


def test_a_model_whose_layers_have_wider_heads_and_experts_of_their_own(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    base = write_checkpoint(tmp_path / "base", "gemma4_text", layer_types=kinds, global_head_dim=32)
    done = fresh("doctor", base, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["supported"]
    assert report["needs"]["run"]["works"]
    assert not report["needs"]["steer"]["works"]
    assert report["needs"]["steer"]["needs"] == ["decoder layers of one attention and one MLP or mixture of experts"]
    planned = fresh("plan", "--set", f"model.id={base}", "--json")
    assert planned.returncode == 0, planned.stderr


def test_a_model_and_its_adapter(tmp_path: Path) -> None:
    base, adapter = write_checkpoint(tmp_path / "base", "olmoe"), write_adapter(tmp_path / "adapter", "olmoe")
    done = fresh("doctor", base, "--adapter", adapter)
    said = " ".join(done.stdout.split())
    assert done.returncode == 0
    assert "experts touched 48 of 48 slices in 6 stacks" in said
    assert "sound; merged and attached give the same logits" in said
    assert "target_parameters=['mlp.experts.down_proj', 'mlp.experts.gate_up_proj']" in said.replace("[ ", "[")
    assert "end of turn" in said
    edit_json(adapter / "adapter_config.json", r=7)
    done = fresh("doctor", base, "--adapter", adapter, "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["adapter"]["findings"][0]["subject"] == "rank"
    assert found["verbs"]["run"] is True


@pytest.mark.parametrize(("family", "experts"), [("olmoe", True), ("llama", False)])
def test_every_verb_is_told_with_what_it_would_need(family: str, experts: bool, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", family)
    done = forked("doctor", model, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    needs = document["needs"]
    assert needs.keys() >= {*VERBS, "verify", "apply"} >= document["verbs"].keys() - {"gene"}
    for verb in ("run", "profile", "select", "repair", "audit"):
        assert needs[verb]["works"] is experts
    assert experts or needs["run"]["needs"] == ["routed experts, which it has not"]
    assert needs["eval"] == {"works": True, "needs": [], "memory": needs["eval"]["memory"], "fits": True}
    assert needs["tune"]["needs"] == ["the model that it was aligned from (tune.base), but for methods sft and mixing"]
    plan = forked("plan", "--set", f"model.id={model}", "--verb", "eval", "--json")
    assert not experts or needs["audit"]["memory"] > 0
    assert plan.returncode == 0, plan.stderr
    assert needs["eval"]["memory"] >= document["bytes_on_disk"]
    text = " ".join(forked("doctor", model).stdout.split())
    assert ("run no; needs routed experts" in text) is not experts
    assert "verify yes; needs an endpoint that serves it" in text


def test_a_folder_without_an_adapter(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", "olmoe")
    refused("doctor", base, "--adapter", tmp_path / "nowhere", saying="does not exist")
    refused("doctor", tmp_path / "nowhere", saying="nowhere")

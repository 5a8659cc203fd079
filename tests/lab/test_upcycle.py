"""Upcycling: which dense models fit, that nothing is lost where nothing is left out, and what the folder holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Glm4MoeForCausalLM, PreTrainedModel

from dense import dense
from families import random_ids, tiny, tiny_tokenizer
from seawall.config.model import ModelConfig
from seawall.errors import SeawallError, UnsupportedModelError
from seawall.lab import calibrate
from seawall.lab.architecture import assemble, moe_config, require_fit, untied_state
from seawall.lab.cut import LabShape, cut, dense_weights, moe_block
from seawall.lab.experts import checked_shape
from seawall.lab.fit import fit_cut, neuron_scale
from seawall.lab.upcycle import Options, main, parse, upcycle
from seawall.models.files.load import load_model
from seawall.models.files.save import save_model
from seawall.models.moe.find import find_moe

SMALL = ("--experts", "4", "--top-k", "2", "--calibration-tokens", "256", "--goals", "2", "--reply-tokens", "3")


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model(input_ids=random_ids()).logits
    return result


def written(folder: Path, model: PreTrainedModel) -> Path:
    model.generation_config.max_length = 77
    save_model(model, tiny_tokenizer(), folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\nA model.\n")
    (folder / "LICENSE").write_text("Apache License\n")
    return folder


def upcycled(folder: Path, model: PreTrainedModel, *options: str) -> Path:
    source = written(folder / "source", model)
    assert main([str(source), "-o", str(folder / "moe"), *SMALL, *options]) == 0
    return folder / "moe"


@pytest.fixture(autouse=True)
def short_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few prompts with short replies: the tiny tokenizer has a token per byte."""
    monkeypatch.setattr(calibrate, "REPLY_TOKENS", 4)
    monkeypatch.setattr(calibrate, "_BATCH", 4)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_with_every_expert_chosen_evenly_the_cut_is_the_dense_model(family: str, tied: bool) -> None:
    model = dense(family, tie_word_embeddings=tied)
    require_fit(model)
    shape = LabShape(first_dense=1, whole=2, experts=5, top_k=5, routed_share=1.0)
    state = untied_state(model)
    for layer in (1, 2):
        block = f"model.layers.{layer}.mlp"
        weight = cut(dense_weights(model.get_submodule(block)), torch.randperm(32), shape)
        moe = moe_block(weight, torch.zeros(5, 32), torch.zeros(5), shape)
        state = {name: tensor for name, tensor in state.items() if not name.startswith(f"{block}.")}
        state |= {f"{block}.{name}": tensor for name, tensor in moe.items()}
    split = assemble(moe_config(model, shape), state, torch.float32)
    assert split.config.n_shared_experts * split.config.moe_intermediate_size == 32
    assert split.config.moe_intermediate_size == 8  # 6 neurons and padding
    assert (logits(split) - logits(model)).abs().max() < 1e-4


@pytest.mark.parametrize("rope", [{"rope_type": "linear", "factor": 2.0}, {"rope_type": "yarn", "factor": 4.0}])
def test_scaled_positions_that_the_class_has_are_kept(rope: dict[str, Any]) -> None:
    require_fit(dense("llama", rope_parameters={**rope, "rope_theta": 10000.0}))


@pytest.mark.parametrize(
    ("family", "overrides", "named"),
    [
        ("gemma2", {}, "gelu"),
        ("gemma3_text", {}, "gelu"),
        ("llama", {"hidden_act": "relu"}, "relu"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding_attention"),
        ("mistral", {"sliding_window": 8}, "sliding_attention"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}, "dynamic"),
        ("llama", {"attention_bias": True}, "o_proj.bias"),
        ("llama", {"mlp_bias": True}, "down_proj.bias"),
        ("olmo2", {}, "post_feedforward_layernorm"),
        ("granite", {"embedding_multiplier": 3.0}, "logit difference"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(family: str, overrides: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"{family}.*got .*{named}"):
        require_fit(dense(family, **overrides))


def test_a_mixture_of_experts_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="experts"):
        require_fit(tiny("mixtral"))


def test_the_fit_comes_closer_than_a_cut_at_random() -> None:
    torch.manual_seed(0)
    weight = {"gate": torch.randn(64, 16), "up": torch.randn(64, 16), "down": torch.randn(16, 64)}
    x_TD = torch.randn(400, 16)
    shape = LabShape(whole=32, experts=8, top_k=2, routed_share=1.0)
    fit = fit_cut(weight, x_TD[:300], shape, torch.Generator().manual_seed(0))
    assert sorted(fit.order.tolist()) == list(range(64))

    def error(weights: dict[str, torch.Tensor], router: torch.Tensor) -> float:
        act = torch.nn.functional.silu(x_TD[300:] @ weights["gate"].T) * (x_TD[300:] @ weights["up"].T)
        scale = torch.cat([torch.ones(100, 64), neuron_scale(x_TD[300:], router, fit.bias, shape, 32)], 1)
        dense_act = torch.nn.functional.silu(x_TD[300:] @ weight["gate"].T) * (x_TD[300:] @ weight["up"].T)
        return float(((act * scale) @ weights["down"].T - dense_act @ weight["down"].T).norm())

    chance = cut(weight, torch.randperm(64), shape)
    assert (
        error(fit.weight, fit.router)
        < error(cut(weight, fit.order, shape), fit.router)
        < 0.9 * error(chance, torch.randn(8, 16))
    )


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_folder_is_an_untied_model_with_its_costs(tmp_path: Path, family: str, capsys: Any) -> None:
    model = dense(family, tie_word_embeddings=True)
    folder = upcycled(tmp_path, model, "--dtype", "bfloat16", "--base-model", "someone/dense")
    stored = load_file(folder / "model.safetensors")
    assert torch.equal(stored["lm_head.weight"], stored["model.embed_tokens.weight"])
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert config["attention_bias"] is (family == "qwen2")
    assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    reloaded = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(reloaded, Glm4MoeForCausalLM)
    assert reloaded.dtype == torch.bfloat16
    assert reloaded.generation_config.max_length == 77
    assert AutoTokenizer.from_pretrained(folder).chat_template == tiny_tokenizer().chat_template
    opened, _ = load_model(ModelConfig(id=str(folder), device="cpu"))
    moe = find_moe(opened)
    assert (moe.num_layers, moe.layers[0].num_experts, moe.layers[0].top_k) == (2, 4, 2)
    costs = json.loads((folder / "upcycle.json").read_text())
    assert costs["calibration"]["tokens"] == 256
    loss = costs["measured"]["loss"]
    assert min(loss["dense"], loss["cut"]) > 0
    assert loss["relative_increase"]["n"] == 2
    for rates in costs["measured"]["refusals"].values():
        assert rates["dense"]["n"] == rates["cut"]["n"] == 2
        assert rates["change"]["low"] <= rates["change"]["difference"] <= rates["change"]["high"]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n")
    assert "license: apache-2.0\nbase_model: someone/dense" in card
    assert "| Harmful requests refused |" in card
    assert "| Harmful requests refused |" in capsys.readouterr().out
    assert (folder / "LICENSE").read_text() == "Apache License\n"


def test_experts_that_carry_nothing_leave_the_dense_model(tmp_path: Path) -> None:
    model = dense("qwen2")
    folder = upcycled(tmp_path, model, "--routed-share", "0", "--no-measure", "--first-dense", "0")
    assert (logits(AutoModelForCausalLM.from_pretrained(folder)) - logits(model)).abs().max() < 1e-4
    assert json.loads((folder / "upcycle.json").read_text())["measured"] is None
    assert "was not measured" in (folder / "README.md").read_text()


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    source = written(tmp_path / "source", dense("llama"))
    files = []
    for name in ("first", "second"):
        assert main([str(source), "-o", str(tmp_path / name), *SMALL, "--no-measure"]) == 0
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1]


def test_requests_of_files_are_measured(tmp_path: Path) -> None:
    for kind in ("harmful", "borderline", "benign"):
        (tmp_path / f"{kind}.jsonl").write_text("".join(f'{{"goal": "{kind} {n}"}}\n' for n in range(3)))
    (tmp_path / "gold.jsonl").write_text('{"instruction": "Say yes", "input": "", "output": "Yes."}\n')
    source = written(tmp_path / "source", dense("llama"))
    files = {kind: str(tmp_path / f"{kind}.jsonl") for kind in ("harmful", "borderline", "benign", "gold")}
    options = Options(
        str(source), tmp_path / "moe", experts=4, top_k=2, calibration_tokens=256, goals=3, reply_tokens=3, files=files
    )
    document = upcycle(options, lambda line: None)
    assert document["measured"]["files"] == {kind: f"{kind}.jsonl" for kind in files}
    assert document["measured"]["refusals"]["benign"]["cut"]["n"] == 3
    assert document["measured"]["loss"]["relative_increase"]["n"] == 1


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--top-k", "5"], "--top-k.*got 5; expected 1 to 4"),
        (["--whole", "15"], "17 neurons for 4 experts; set --whole 24"),
        (["--whole", "40"], "--whole"),
        (["--first-dense", "3"], "--first-dense"),
        (["--experts", "1"], "--experts"),
        (["--routed-share", "1.5"], "--routed-share"),
        (["--harmful", "no.jsonl"], "no.jsonl"),
        (["--seed", "x"], "--seed"),
        (["--calibration-tokens", "3"], "at least 256"),
        (["--device", "tpu"], "tpu"),
        (["--dtype", "int8"], "int8"),
        (["--frob"], "--frob"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    tmp_path: Path, words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = written(tmp_path / "source", dense("llama"))
    assert main([str(source), "-o", str(tmp_path / "moe"), *SMALL, *words]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert re.search(named, message)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_output_that_exists_is_refused_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "moe").mkdir()
    (tmp_path / "moe" / "notes.txt").write_text("mine")
    assert main(["no-model", "-o", str(tmp_path / "moe")]) == 2
    assert "already exists" in capsys.readouterr().err
    assert (tmp_path / "moe" / "notes.txt").read_text() == "mine"


def test_a_failure_at_the_end_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path / "source", dense("llama"))

    def fail(*arguments: object) -> str:
        raise SeawallError("the card cannot be written")

    monkeypatch.setattr("seawall.lab.upcycle.model_card", fail)
    assert main([str(source), "-o", str(tmp_path / "moe"), *SMALL, "--no-measure"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_defaults_of_the_shape_suit_grouped_products() -> None:
    config = dense("qwen2", intermediate_size=4864, num_hidden_layers=4).config
    shape = checked_shape(config, experts=32, top_k=4, routed_share=1.0)
    assert (shape.first_dense, shape.whole, shape.expert_width(4864)) == (2, 3584, 40)
    assert parse(["m", "-o", "out"]).is_measured

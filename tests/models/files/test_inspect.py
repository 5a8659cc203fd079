from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import NotASafetensorsRepoError
from transformers import AutoModelForCausalLM

from checkpoints import WEIGHTS, config_of, edit_json, write_checkpoint, write_shards
from families import EXPERT_WIDTH, FAMILIES, NUM_EXPERTS, NUM_LAYERS, REFUSED, TOP_K, UNUSUAL, WIDTH, random_ids, tiny
from seawall.config.model import ModelConfig
from seawall.errors import ArtifactError, ConfigError, UnsupportedModelError
from seawall.models.files import hub, inspect
from seawall.models.files.checkpoint import TensorHeader
from seawall.models.files.inspect import MoESummary, inspect_model

SHARED = {
    "qwen2_moe",
    "deepseek_v2",
    "deepseek_v3",
    "glm4_moe",
    "ernie4_5_moe",
    "hunyuan_v1_moe",
    "nemotron_h",
    "gemma4_text",
}


@pytest.mark.parametrize("family", [*FAMILIES, *UNUSUAL])
def test_a_supported_family(tmp_path: Path, family: str) -> None:
    folder, model = write_checkpoint(tmp_path / "model", family), tiny(family)
    summary = inspect_model(config_of(folder))
    assert summary.verdict == "supported"
    assert summary.supported
    assert (summary.architecture, summary.family) == (type(model).__name__, family)
    assert summary.parameters == sum(parameter.numel() for parameter in model.parameters())
    moe = summary.moe
    assert moe is not None
    assert (moe.layers, moe.experts, moe.top_k) == (NUM_LAYERS, NUM_EXPERTS, TOP_K)
    idle = NUM_LAYERS * (NUM_EXPERTS - TOP_K) * moe.expert_parameters
    assert summary.active_parameters == summary.parameters - idle
    assert bool(moe.shared_experts) == (family in SHARED)
    assert all(shape[0] == NUM_EXPERTS for _, shape in moe.expert_tensors)
    assert summary.dtype == "float32"
    buffers = {name for name, _ in model.named_buffers()} & model.state_dict().keys()
    extra = 4 * sum(model.state_dict()[name].numel() for name in buffers)
    assert summary.bytes_on_disk == 4 * summary.parameters + extra
    assert summary.tokenizer
    assert summary.chat_template


@pytest.mark.parametrize("family", [*FAMILIES, "gemma4_text", "llama"])
def test_the_cache_is_as_large_as_said(tmp_path: Path, family: str) -> None:
    summary = inspect_model(config_of(write_checkpoint(tmp_path / "model", family)))
    with torch.no_grad():
        cache = tiny(family)(random_ids(1, 5), use_cache=True).past_key_values
    kept = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert kept == 5 * summary.decoder_layers * summary.cache_elements


def test_layers_with_wider_heads_are_counted_layer_by_layer(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    sizes: dict[str, Any] = {"layer_types": kinds, "global_head_dim": 32}
    summary = inspect_model(config_of(write_checkpoint(tmp_path / "model", "gemma4_text", **sizes)))
    model = tiny("gemma4_text", **sizes)
    assert model.config.is_heterogeneous, "transformers refuses to read head_dim of the whole configuration"
    with torch.no_grad():
        cache = model(random_ids(1, 5), use_cache=True).past_key_values
    kept = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert kept == 5 * summary.decoder_layers * summary.cache_elements
    assert summary.moe is not None
    first = model.model.layers[0].self_attn
    assert summary.moe.attention_parameters == sum(value.numel() for value in first.parameters())


def test_the_numbers_of_one_model_by_hand(tmp_path: Path) -> None:
    summary = inspect_model(config_of(write_checkpoint(tmp_path / "model", "deepseek_v3", n_shared_experts=2)))
    expert = 3 * WIDTH * EXPERT_WIDTH
    assert summary.moe == MoESummary(
        layers=3,
        first_layer=1,
        experts=8,
        top_k=2,
        shared_experts=2,
        expert_tensors=(("gate_up_proj", (8, 2 * EXPERT_WIDTH, WIDTH)), ("down_proj", (8, WIDTH, EXPERT_WIDTH))),
        expert_parameters=expert,
        shared_parameters=2 * expert,
        router_parameters=3 * 8 * WIDTH,
        # Queries and keys with values through latent vectors of 16, with a norm each; 4 heads of 8 + 8; the output.
        attention_parameters=2 * (WIDTH * 16 + 16 + 16 * 64) + WIDTH * 8 + 4 * 8 * WIDTH,
        beside_parameters=3 * 2 * expert,
        beside_layers=3,
    )
    assert (summary.decoder_layers, summary.width, summary.vocabulary) == (4, WIDTH, 272)
    assert summary.cache_elements == 16 + 8, "the latent vector and the rotary key"


def test_no_weight_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_shards(tmp_path / "model")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: pytest.fail("loaded"))
    summary = inspect_model(config_of(folder))
    assert summary.supported
    assert summary.parameters == sum(parameter.numel() for parameter in tiny("mixtral").parameters())


def test_a_dense_model_has_the_verbs_that_need_no_experts(tmp_path: Path) -> None:
    summary = inspect_model(config_of(write_checkpoint(tmp_path / "model", "llama")))
    assert summary.supported
    assert (summary.verbs["eval"], summary.verbs["tune"], summary.verbs["run"]) == (True, True, False)
    assert "run, profile, select, repair, audit: no (a dense model has no experts)" in summary.verdict


def test_a_model_without_reachable_experts_is_refused_and_still_described(tmp_path: Path) -> None:
    family, reason = "llama4_text", "Llama4TextExperts at "
    assert family in REFUSED
    summary = inspect_model(config_of(write_checkpoint(tmp_path / "model", family)))
    assert not any(summary.verbs.values())
    assert not summary.supported
    assert summary.verdict.startswith("refused: ")
    assert reason in summary.verdict
    assert summary.moe is None
    assert summary.parameters == summary.active_parameters > 0


def _unknown(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="from_next_year")


def _own_code(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="theirs", auto_map={"AutoModelForCausalLM": "modeling.Theirs"})


def _quantized(folder: Path) -> None:
    edit_json(folder / "config.json", quantization_config={"quant_method": "mxfp4"})


def _pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def _truncated(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def _no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


CHANGES: list[tuple[Callable[[Path], None], str]] = [
    (_unknown, "got model_type from_next_year"),
    (_own_code, "model.trust_remote_code=true"),
    (_quantized, "quantised"),
    (_pickled, "pickled"),
    (_truncated, "is damaged"),
    (_no_template, "no chat template"),
    (_no_tokenizer, "no tokenizer"),
]


@pytest.mark.parametrize(("change", "reason"), CHANGES)
def test_what_is_wrong_becomes_the_verdict(tmp_path: Path, change: Callable[[Path], None], reason: str) -> None:
    folder = write_checkpoint(tmp_path / "model")
    change(folder)
    summary = inspect_model(config_of(folder))
    assert len(summary.refusals) == 1
    assert reason in summary.verdict
    assert "\n" not in summary.verdict
    assert summary.parameters > 0
    assert summary.tokenizer == (change is not _no_tokenizer)
    assert summary.chat_template == (change not in (_no_tokenizer, _no_template))
    assert (summary.moe is None) == (change in (_unknown, _own_code))


def test_all_reasons_are_given_at_once(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama4_text")
    _pickled(folder)
    _no_template(folder)
    assert [reason in inspect_model(config_of(folder)).verdict for reason in ("pickled", "template", "Llama4Text")] == [
        True
    ] * 3


def test_nothing_to_inspect_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        inspect_model(config_of(tmp_path / "nowhere"))
    with pytest.raises(UnsupportedModelError, match=r"no config\.json"):
        inspect_model(config_of(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        inspect_model(config_of(tmp_path))


def test_a_hub_model_is_inspected_without_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "snapshot")
    whole = inspect_model(config_of(folder))
    header = json.loads((folder / WEIGHTS).read_bytes()[8:].split(b"}}", 1)[0] + b"}}")
    header.pop("__metadata__")
    tensors = {name: SimpleNamespace(**entry) for name, entry in header.items()}
    metadata = SimpleNamespace(files_metadata={WEIGHTS: SimpleNamespace(tensors=tensors)})
    (folder / WEIGHTS).unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", lambda *args, **kwargs: str(folder))
    monkeypatch.setattr(hub, "get_safetensors_metadata", lambda *args, **kwargs: metadata)
    summary = inspect_model(ModelConfig(id="some/model"))
    assert summary.supported, summary.verdict
    assert summary.bytes_on_disk == whole.bytes_on_disk
    assert (summary.moe, summary.dtype, summary.parameters) == (whole.moe, whole.dtype, whole.parameters)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise NotASafetensorsRepoError("none")

    monkeypatch.setattr(hub, "get_safetensors_metadata", fail)
    assert "has no safetensors weights" in inspect_model(ModelConfig(id="some/model")).verdict


def test_bfloat16_with_a_few_float32_tensors_is_bfloat16() -> None:
    headers = {"big": TensorHeader("BF16", (8, 8), 128), "small": TensorHeader("F32", (8,), 32)}
    assert inspect._main_dtype(headers) == "bfloat16"
    assert inspect._main_dtype({}) == ""

"""Every tensor of a checkpoint has a place in its model, or the checkpoint is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoints import WEIGHTS, edit_json, write_checkpoint, write_shards
from dense import dense
from families import tiny, tiny_tokenizer
from seawall.config.model import ModelConfig
from seawall.errors import ArtifactError, SeawallError, UnsupportedModelError
from seawall.models.files.inspect import inspect_model
from seawall.models.files.load import load_model
from seawall.models.files.stream import outline

Tensors = dict[str, Tensor]


def float8(tensors: Tensors) -> Tensors:
    changed: Tensors = {}
    for name, tensor in tensors.items():
        if ".experts." in name:
            scale = tensor.abs().max() / 448
            changed |= {name: (tensor / scale).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale.reshape(1, 1)}
        else:
            changed[name] = tensor
    return changed


def int8(tensors: Tensors) -> Tensors:
    return {name: (tensor * 100).to(torch.int8) if ".experts." in name else tensor for name, tensor in tensors.items()}


def left_scales(tensors: Tensors) -> Tensors:
    return tensors | {f"{name}_scale_inv": torch.ones(1, 1) for name in tensors if ".experts." in name}


def another_layer(tensors: Tensors) -> Tensors:
    return tensors | {name.replace("layers.0.", "layers.9."): tensor.clone() for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny("qwen3_moe").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (float8, "quantised; got .* in F8_E4M3"),
        (int8, "quantised; got .* in I8"),
        (left_scales, "quantised; got .*_scale_inv without a quantization_config"),
        (another_layer, r"no place for; got \d+ tensors, model\.layers\.9"),
    ],
)
def test_a_tensor_without_a_place_is_refused(
    change: Callable[[Tensors], Tensors], message: str, checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    config = ModelConfig(id=str(folder), device="cpu")
    with pytest.raises(UnsupportedModelError, match=message):
        load_model(config)
    with pytest.raises(UnsupportedModelError, match=message):
        outline(folder)
    assert "refused" in inspect_model(config).verdict


def test_declared_leftovers_are_no_reason_to_refuse(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(load_file(folder / "model.safetensors") | more, folder / "model.safetensors", {"format": "pt"})
    load_model(ModelConfig(id=str(folder), device="cpu"))
    assert inspect_model(ModelConfig(id=str(folder))).supported


def test_a_tensor_comes_from_the_file_that_the_index_names(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    index = {name: file for file, listed in parts.items() for name in listed}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    for file, listed in parts.items():
        save_file({name: tensors[name] for name in listed}, folder / file, {"format": "pt"})
    load_model(ModelConfig(id=str(folder), device="cpu"))
    stale = {name: torch.zeros_like(tensors[name]) for name in names[:1]}
    save_file({name: tensors[name] for name in names[1::2]} | stale, folder / "b.safetensors", {"format": "pt"})
    with pytest.raises(SeawallError, match=r"holds tensors that .* does not list for it"):
        load_model(ModelConfig(id=str(folder), device="cpu"))


def test_two_tensors_for_one_parameter_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    """transformers adds a missing prefix, and the last tensor would win."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    tensors, name = load_file(folder / WEIGHTS), "model.layers.0.self_attn.q_proj.weight"
    twice = tensors | {name.removeprefix("model."): torch.zeros_like(tensors[name])}
    save_file(twice, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"two tensors for one parameter; got layers\.0\..* and model\.l"):
        load_model(ModelConfig(id=str(folder), device="cpu"))


def test_tied_weights_with_two_values_are_refused(tmp_path: Path) -> None:
    """transformers keeps both, vLLM leaves out the output layer's."""
    dense("llama", tie_word_embeddings=True).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    config, tensors = ModelConfig(id=str(tmp_path), device="cpu"), load_file(tmp_path / WEIGHTS)
    embedding = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": embedding.clone()}, tmp_path / WEIGHTS, {"format": "pt"})
    load_model(config)
    save_file(tensors | {"lm_head.weight": embedding + 1}, tmp_path / WEIGHTS, {"format": "pt"})
    with pytest.raises(ArtifactError, match=r"two values .*; got lm_head\.weight .*; set tie_word_embeddings=false"):
        load_model(config)
    edit_json(tmp_path / "config.json", tie_word_embeddings=False)
    model, _ = load_model(config)
    assert torch.equal(model.get_output_embeddings().weight, embedding + 1)


def test_one_file_beside_shards_is_refused(tmp_path: Path) -> None:
    """transformers loads the one file, vLLM the shards."""
    write_shards(tmp_path)
    shard = next(tmp_path.glob("model-00001*"))
    shutil.copyfile(shard, tmp_path / WEIGHTS)
    with pytest.raises(ArtifactError, match=r"two sets of weights.*; got model\.safetensors beside \d+ files of"):
        load_model(ModelConfig(id=str(tmp_path), device="cpu"))
    with pytest.raises(ArtifactError, match="two sets of weights"):
        outline(tmp_path)


def test_a_gap_in_the_numbers_of_experts_is_refused(tmp_path: Path) -> None:
    """Experts 0, 1, 3 and 4 fill a stack of four, the last two beside another expert's row of the router."""
    folder = write_checkpoint(tmp_path, "olmoe")
    tensors = load_file(folder / WEIGHTS)
    last = 8
    moved = {name.replace("layers.1.mlp.experts.3.", f"layers.1.mlp.experts.{last}."): t for name, t in tensors.items()}
    save_file(moved, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"experts\.8\.\w+\.weight without 1 experts before it, 3 first"):
        load_model(ModelConfig(id=str(folder), device="cpu"))


@pytest.mark.parametrize("top_k", [0, 9])
def test_a_number_of_experts_per_token_that_cannot_be_is_refused(tmp_path: Path, top_k: int) -> None:
    folder = write_checkpoint(tmp_path, "olmoe")
    edit_json(folder / "config.json", num_experts_per_tok=top_k)
    with pytest.raises(ArtifactError, match=f"num_experts_per_tok in .* is wrong; got {top_k}; expected 1 to 8"):
        load_model(ModelConfig(id=str(folder), device="cpu"))

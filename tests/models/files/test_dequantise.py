"""MXFP4 and FP8 checkpoints: a plain copy holds the values of the formats' definitions, and every verb can use it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoints import WEIGHTS
from families import random_ids
from quantised import write_fp8, write_mxfp4
from seawall.config.model import ModelConfig
from seawall.errors import ArtifactError, UnsupportedModelError
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.files.inspect import inspect_model
from seawall.models.files.load import load_model, model_folder
from seawall.models.files.open import Checkpoint
from seawall.models.moe.find import find_moe

WRITERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {"mxfp4": write_mxfp4, "fp8": write_fp8}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEAWALL_CACHE", str(tmp_path / "cache"))


def _folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


@pytest.mark.parametrize("method", WRITERS)
def test_the_copy_has_the_values_of_the_format_and_is_a_checkpoint_like_any_other(method: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    values = WRITERS[method](folder)
    config = ModelConfig(id=str(folder), dequantize=True)
    copy = model_folder(config)
    assert "quantization_config" not in json.loads((copy / "config.json").read_text())
    stored = load_file(copy / "model.safetensors")
    assert set(stored) == set(values)
    for name, tensor in stored.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, values[name]), name
    model, tokenizer = load_model(config)
    assert find_moe(model).num_layers == 3
    assert tokenizer.chat_template
    assert Checkpoint(config).fingerprint == model_fingerprint(model), "files and memory are one model"


def test_the_copy_is_written_once_and_again_for_other_files(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    write_fp8(folder)
    config = ModelConfig(id=str(folder), dequantize=True)
    copy = model_folder(config)
    written = (copy / "model.safetensors").stat().st_mtime_ns
    assert model_folder(config) == copy
    assert (copy / "model.safetensors").stat().st_mtime_ns == written
    write_fp8(folder, size=8)
    assert model_folder(config) != copy
    assert not list((tmp_path / "cache").glob(".dequantised-*"))


@pytest.mark.parametrize("method", WRITERS)
def test_without_the_setting_weights_cannot_be_changed_but_can_be_measured(method: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    WRITERS[method](folder)
    config = ModelConfig(id=str(folder))
    with pytest.raises(UnsupportedModelError, match=rf"got {method}; .*set model\.dequantize=true") as refusal:
        load_model(config)
    assert "\n" not in str(refusal.value)
    with pytest.raises(UnsupportedModelError, match=r"model\.dequantize=true"):
        Checkpoint(config).load()
    measured, _ = load_model(config, as_stored=True)
    plain, _ = load_model(config.model_copy(update={"dequantize": True}))
    with torch.no_grad():
        logits, expected = measured(random_ids()).logits, plain(random_ids()).logits
    assert torch.equal(logits, expected), "without a kernel transformers dequantises in memory"


@pytest.mark.parametrize("method", WRITERS)
def test_an_inspection_says_what_the_loaded_model_is(method: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    WRITERS[method](folder)
    assert "model.dequantize=true" in inspect_model(ModelConfig(id=str(folder))).verdict
    summary = inspect_model(ModelConfig(id=str(folder), dequantize=True))
    assert summary.moe is not None
    assert summary.parameters == sum(
        tensor.numel() for tensor in load_model(ModelConfig(id=str(folder), dequantize=True))[0].parameters()
    )


def test_another_method_is_refused_by_name(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    write_fp8(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="got gptq; expected mxfp4 or fp8"):
        model_folder(ModelConfig(id=str(folder), dequantize=True))


@pytest.mark.parametrize("dequantize", [True, False])
def test_numbers_without_their_scales_are_refused(dequantize: bool, tmp_path: Path) -> None:
    """Without any scale transformers takes the 8-bit floats, up to 448, for the weights."""
    folder = _folder(tmp_path)
    write_fp8(folder)
    tensors = load_file(folder / WEIGHTS)
    without = {name: tensor for name, tensor in tensors.items() if not name.endswith("_scale_inv")}
    save_file(without, folder / WEIGHTS, metadata={"format": "pt"})
    config = ModelConfig(id=str(folder), dequantize=dequantize)
    with pytest.raises(ArtifactError, match=r"incomplete; got .*\.weight in F8_E4M3 without a scale"):
        load_model(config, as_stored=True)


def test_tensors_that_no_dequantised_weight_takes_are_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    write_fp8(folder)
    tensors, config = load_file(folder / WEIGHTS), ModelConfig(id=str(folder), dequantize=True)
    scales = {name: tensor for name, tensor in tensors.items() if name.endswith("_scale_inv")}
    of_inputs = {name.replace("weight_scale_inv", "input_scale"): torch.ones(()) for name in scales}
    save_file(tensors | of_inputs, folder / WEIGHTS, metadata={"format": "pt"})
    load_model(config)
    renamed = {name.removesuffix("_inv"): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"model/? are quantised; got .*\.weight_scale without"):
        load_model(config)


def test_a_plain_checkpoint_stays_where_it_is(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    write_mxfp4(folder)
    config = ModelConfig(id=str(folder), dequantize=True)
    copy = model_folder(config)
    assert model_folder(config.model_copy(update={"id": str(copy)})) == copy

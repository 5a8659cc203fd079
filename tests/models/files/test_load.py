from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import T5Config
from transformers.utils import logging as transformers_logging

from checkpoints import INDEX, WEIGHTS, config_of, edit_json, logits, rewrite_weights, write_checkpoint, write_shards
from families import random_ids, tiny, tiny_tokenizer
from seawall.config.model import ModelConfig
from seawall.errors import ArtifactError, ConfigError, DataError, SeawallError, UnsupportedModelError
from seawall.models.files import hub
from seawall.models.files.load import load_model, load_tokenizer
from seawall.models.files.placement import requested_device, requested_dtype


def test_a_checkpoint_loads_ready_to_use(tmp_path: Path) -> None:
    model, tokenizer = load_model(config_of(write_checkpoint(tmp_path / "model")))
    assert not model.training
    assert model.dtype == torch.float32
    assert model.device.type == requested_device("auto").type
    assert tokenizer.chat_template == load_tokenizer(config_of(tmp_path / "model")).chat_template
    assert torch.equal(logits(model.cpu()), logits(load_model(config_of(tmp_path / "model", device="cpu"))[0]))


def test_shards_load_like_one_file(tmp_path: Path) -> None:
    whole, _ = load_model(config_of(write_checkpoint(tmp_path / "whole"), device="cpu"))
    parts, _ = load_model(config_of(write_shards(tmp_path / "parts"), device="cpu"))
    assert torch.equal(logits(whole), logits(parts))


@pytest.mark.parametrize(("name", "dtype"), [("auto", torch.bfloat16), ("float32", torch.float32)])
def test_dtype_is_the_checkpoints_own_unless_asked(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    folder = write_checkpoint(tmp_path / "model")
    load_model(config_of(folder, dtype="bfloat16"))[0].save_pretrained(tmp_path / "half")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / file).rename(tmp_path / "half" / file)
    assert load_model(config_of(tmp_path / "half", dtype=name))[0].dtype == dtype


def test_experts_implementation_is_passed_on(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    for name in ("eager", "batched_mm"):
        model, _ = load_model(config_of(folder, experts_implementation=name))
        assert model.get_experts_implementation()[""] == name


@pytest.mark.parametrize("family", ["qwen2_moe", "gemma4_text"])
def test_logits_do_not_depend_on_where_weights_lie_in_the_file(tmp_path: Path, family: str) -> None:
    folder = write_checkpoint(tmp_path / "model", family, tie_word_embeddings=True)
    expected = tiny(family, tie_word_embeddings=True)
    for length in (8, 16, 24, 48):
        rewrite_weights(folder, metadata={"note": "x" * length})
        model, _ = load_model(config_of(folder, device="cpu"))
        for ids in (random_ids(1, 1), random_ids(2, 9)):
            with torch.no_grad():
                assert torch.equal(model(ids).logits, expected(ids).logits), length


def test_a_loaded_model_does_not_change_with_its_file(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    model, _ = load_model(config_of(folder, device="cpu"))
    before = logits(model)
    with (folder / WEIGHTS).open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(0)
        file.write(b"\0" * size)
    assert torch.equal(logits(model), before)


def test_loading_is_silent_and_leaves_logging_as_it_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_checkpoint(tmp_path / "model")
    capfd.readouterr()
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    load_model(config_of(folder))
    assert capfd.readouterr() == ("", "")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before


def _truncate(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def _cut_in_header(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:100])


def _cut_in_length(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\1\0")


def _lengthen(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"more")


def _header(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def _overlap(folder: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        first, second = [entry for name, entry in header.items() if name != "__metadata__"][:2]
        second["data_offsets"], second["shape"], second["dtype"] = first["data_offsets"], first["shape"], first["dtype"]

    _header(folder, change)


def _wrong_shape(folder: Path) -> None:
    _header(folder, lambda header: header["model.norm.weight"].update(shape=[7]))


def _garbage(folder: Path) -> None:
    _header(folder, lambda header: header.update({"model.norm.weight": "nothing"}))


DAMAGES = [_truncate, _cut_in_header, _cut_in_length, _lengthen, _overlap, _wrong_shape, _garbage]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_weight_file_is_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = write_checkpoint(tmp_path / "model")
    damage(folder)
    with pytest.raises(ArtifactError, match=rf"{WEIGHTS} is damaged") as caught:
        load_model(config_of(folder))
    assert "\n" not in str(caught.value)


def test_a_changed_bit_is_found_where_seawall_wrote_the_file(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", hashes=True)
    load_model(config_of(folder))
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="not the file that seawall wrote"):
        load_model(config_of(folder))
    (folder / WEIGHTS).write_bytes(content)
    load_model(config_of(folder))
    (folder / "generation_config.json").unlink()
    with pytest.raises(ArtifactError, match=r"generation_config\.json is missing"):
        load_model(config_of(folder))


@pytest.mark.parametrize("drop", ["layers.1.block_sparse_moe.experts.3.w2", "model.norm.weight", "layers.2"])
def test_missing_tensors_are_never_made_up(tmp_path: Path, drop: str) -> None:
    folder = write_checkpoint(tmp_path / "model")
    before = (folder / WEIGHTS).stat().st_size
    rewrite_weights(folder, drop=drop)
    assert (folder / WEIGHTS).stat().st_size < before, "the name must exist"
    with pytest.raises(SeawallError, match=r"incomplete|cannot be loaded"):
        load_model(config_of(folder))


def test_a_missing_shard_and_a_wrong_index_are_named(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "model")
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    edit_json(folder / INDEX, weight_map={**index, "model.extra": index["model.norm.weight"]})
    with pytest.raises(ArtifactError, match=r"1 tensors of model\.safetensors\.index\.json in no file, model\.extra"):
        load_model(config_of(folder))
    edit_json(folder / INDEX, weight_map={**index, "model.norm.weight": "../other.safetensors"})
    with pytest.raises(ArtifactError, match="file names"):
        load_model(config_of(folder))
    edit_json(folder / INDEX, weight_map=index)
    (folder / index["model.norm.weight"]).unlink()
    with pytest.raises(ArtifactError, match=rf"{index['model.norm.weight']} is missing"):
        load_model(config_of(folder))


def _pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def _no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _listed_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def _wrong_field(folder: Path) -> None:
    edit_json(folder / "config.json", hidden_size="wide")


def _wrong_size(folder: Path) -> None:
    edit_json(folder / "config.json", hidden_size=64)


def _unknown(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="from_next_year")


def _no_type(folder: Path) -> None:
    edit_json(folder / "config.json", model_type=None)


def _seq2seq(folder: Path) -> None:
    T5Config().save_pretrained(folder)


def _own_code(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="theirs", auto_map={"AutoModelForCausalLM": "modeling.Theirs"})


def _quantized(folder: Path) -> None:
    edit_json(folder / "config.json", quantization_config={"quant_method": "mxfp4"})


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _broken_tokenizer(folder: Path) -> None:
    content = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(content[: len(content) // 2])


def _no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


REFUSED: list[tuple[Callable[[Path], None], type[SeawallError], str]] = [
    (_pickled, UnsupportedModelError, r"pickled.*pytorch_model\.bin.*expected safetensors"),
    (_no_weights, UnsupportedModelError, "no weights in"),
    (_no_config, UnsupportedModelError, r"no config\.json in"),
    (_broken_config, ArtifactError, r"config\.json is damaged.*expected JSON"),
    (_listed_config, ArtifactError, r"config\.json is damaged; got list"),
    (_wrong_field, UnsupportedModelError, r"config\.json does not fit its model.*hidden_size"),
    (_wrong_size, UnsupportedModelError, "cannot be loaded"),
    (_unknown, UnsupportedModelError, "got model_type from_next_year; upgrade transformers"),
    (_no_type, UnsupportedModelError, "got model_type None"),
    (_seq2seq, UnsupportedModelError, "not a causal language model; got model_type t5"),
    (_own_code, UnsupportedModelError, r"Python code.*got model_type theirs.*trust_remote_code=true"),
    (_quantized, UnsupportedModelError, "quantised; got mxfp4"),
    (_no_tokenizer, UnsupportedModelError, "no tokenizer in"),
    (_broken_tokenizer, ArtifactError, r"tokenizer\.json is damaged"),
    (_no_template, DataError, "no chat template"),
]


@pytest.mark.parametrize(("change", "kind", "message"), REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, change: Callable[[Path], None], kind: type[SeawallError], message: str
) -> None:
    folder = write_checkpoint(tmp_path / "model")
    change(folder)
    with pytest.raises(kind, match=message) as caught:
        load_model(config_of(folder))
    assert "\n" not in str(caught.value)


def test_the_tokenizer_needs_no_weights(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / WEIGHTS).unlink()
    assert load_tokenizer(config_of(folder)).chat_template
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(DataError, match="no chat template"):
        load_tokenizer(config_of(folder))


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "~/nothing", "a/b/c", "..", "a\\b"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", lambda *args, **kwargs: pytest.fail("no network"))
    expected = UnsupportedModelError if name == ".." else ConfigError
    with pytest.raises(expected, match=r"does not exist|no config\.json"):
        load_model(ModelConfig(id=name))


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"model\.gguf is a file"):
        load_model(ModelConfig(id=str(tmp_path / "model.gguf")))


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"is a folder, which has no revisions; got model\.revision=main"):
        load_model(ModelConfig(id=str(folder), revision="main"))


def _response() -> Any:
    return SimpleNamespace(headers={}, request=None, status_code=404, text="")


HUB_ERRORS: list[tuple[Callable[[], Exception], str]] = [
    (lambda: GatedRepoError("gated", response=_response()), "is gated on the Hub.*hf auth login"),
    (
        lambda: RepositoryNotFoundError("404", response=_response()),
        "no local folder some/model and no model some/model",
    ),
    (lambda: RevisionNotFoundError("404", response=_response()), "the Hub has no some/model at revision v9"),
    (lambda: LocalEntryNotFoundError("offline"), "the Hub cannot be reached"),
    (lambda: OfflineModeIsEnabled("offline"), "the Hub cannot be reached"),
    (lambda: HFValidationError("bad"), "neither a folder nor a Hub id"),
    (lambda: ConnectionError("reset\nby peer"), "could not be fetched from the Hub; got reset;"),
]


@pytest.mark.parametrize(("error", "message"), HUB_ERRORS)
def test_trouble_with_the_hub_is_one_line(
    error: Callable[[], Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> str:
        raise error()

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(ConfigError, match=message) as caught:
        load_model(ModelConfig(id="some/model", revision="v9"))
    assert "\n" not in str(caught.value)


def test_a_hub_model_loads_from_its_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "snapshot")
    asked: dict[str, Any] = {}

    def download(name: str, **kwargs: Any) -> str:
        asked.update(kwargs, name=name)
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    model, _ = load_model(ModelConfig(id="some/model", revision="abc", device="cpu"))
    assert torch.equal(logits(model), logits(load_model(config_of(folder, device="cpu"))[0]))
    assert (asked["name"], asked["revision"]) == ("some/model", "abc")
    assert "*.safetensors" in asked["allow_patterns"]
    assert not {"*.bin", "*.py", "*.pt"} & set(asked["allow_patterns"])
    load_tokenizer(ModelConfig(id="some/model"))
    assert "*.safetensors" not in asked["allow_patterns"]


def test_unknown_types_and_devices_are_named() -> None:
    assert requested_dtype("auto") == "auto"
    with pytest.raises(ConfigError, match=r"unknown model\.dtype; got int3; expected auto, float32"):
        requested_dtype("int3")
    with pytest.raises(ConfigError, match=r"unknown model\.device; got toaster"):
        requested_device("toaster")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_device_that_is_not_here_is_refused_before_weights_are_read(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "model")
    monkeypatch.setattr("seawall.models.files.load._load_weights", lambda *args, **kwargs: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match=rf"model\.device asks for {name}; got 0 devices.*set model\.device=auto"):
        load_model(config_of(folder, device=name))


def test_a_dense_model_loads_too(tmp_path: Path) -> None:
    model, _ = load_model(config_of(write_checkpoint(tmp_path / "model", "llama"), device="cpu"))
    assert torch.equal(logits(model), logits(tiny("llama")))


@pytest.mark.parametrize("value", [{}, "2", [2, None], True, 2.5, 10**12, [[2]]])
def test_a_special_token_that_is_no_id_is_refused(tmp_path: Path, value: object) -> None:
    tiny("mixtral").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(ArtifactError, match=r"generation_config\.json: eos_token_id is wrong"):
        load_model(config_of(tmp_path))


def test_a_damaged_tokenizer_is_one_line(tmp_path: Path) -> None:
    tiny("mixtral").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer.json").read_text())
    settings["added_tokens"][0]["id"] = "first"
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(UnsupportedModelError, match=r"the tokenizer in .* cannot be loaded; got .*expected u32"):
        load_model(config_of(tmp_path))

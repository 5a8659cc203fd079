from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import GenerationConfig

from checkpoints import INDEX, WEIGHTS, config_of, logits, write_checkpoint
from families import FAMILIES, UNUSUAL, tiny, tiny_tokenizer
from seawall.errors import ArtifactError, RunFolderError, UnsupportedModelError
from seawall.models.files.checkpoint import HASHES_FILE
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.files.load import load_model
from seawall.models.files.save import save_model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", [*FAMILIES, *UNUSUAL, "llama"])
def test_a_saved_model_reloads_to_the_same_bits_and_logits(tmp_path: Path, family: str, dtype: str) -> None:
    model, tokenizer = load_model(config_of(write_checkpoint(tmp_path / "base", family), dtype=dtype, device="cpu"))
    save_model(model, tokenizer, tmp_path / "saved")
    again, _ = load_model(config_of(tmp_path / "saved", device="cpu"))
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype, name
        assert torch.equal(tensor, after[name]), name
    assert model_fingerprint(model) == model_fingerprint(again)
    assert torch.equal(logits(model), logits(again))


def test_experts_that_are_stored_one_by_one_come_back_stacked(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "mixtral")
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        stored = set(file.keys())
    assert "model.layers.0.block_sparse_moe.experts.7.w1.weight" in stored, "mixtral's published layout"
    expected, loaded = tiny("mixtral"), load_model(config_of(folder, device="cpu"))[0]
    for name, parameter in expected.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name)), name


@pytest.mark.parametrize("family", ["qwen2_moe", "glm4_moe", "llama"])
def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path, family: str) -> None:
    folder = write_checkpoint(tmp_path / "model", family, tie_word_embeddings=True)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - not a mapping
    model, _ = load_model(config_of(folder))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model_fingerprint(model) == model_fingerprint(tiny(family, tie_word_embeddings=True))


def test_settings_and_chat_template_are_kept(tmp_path: Path) -> None:
    model, tokenizer = tiny("olmoe"), tiny_tokenizer()
    model.generation_config = GenerationConfig(eos_token_id=[2, 5], pad_token_id=0, max_length=77)
    save_model(model, tokenizer, tmp_path / "model")
    again, tokenizer_again = load_model(config_of(tmp_path / "model"))
    assert again.generation_config.eos_token_id == [2, 5]
    assert again.generation_config.max_length == 77
    assert tokenizer_again.chat_template == tokenizer.chat_template
    assert tokenizer_again.eos_token_id == tokenizer.eos_token_id
    assert again.config.num_experts == model.config.num_experts
    assert json.loads((tmp_path / "model/config.json").read_text())["architectures"] == ["OlmoeForCausalLM"]


def test_every_file_is_hashed_and_none_is_pickled(tmp_path: Path) -> None:
    hashes = save_model(tiny("mixtral"), tiny_tokenizer(), tmp_path / "model")
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert set(hashes) == files - {HASHES_FILE}
    assert {WEIGHTS, "config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= files
    assert INDEX not in files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
    digest = hashlib.sha256((tmp_path / "model" / WEIGHTS).read_bytes()).hexdigest()
    assert hashes[WEIGHTS] == f"sha256:{digest}"
    assert json.loads((tmp_path / "model" / HASHES_FILE).read_text()) == {"files": hashes}


def test_saving_twice_gives_the_same_files(tmp_path: Path) -> None:
    first = save_model(tiny("qwen3_moe"), tiny_tokenizer(), tmp_path / "first")
    second = save_model(tiny("qwen3_moe"), tiny_tokenizer(), tmp_path / "second")
    assert first == second


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "mine.txt").write_text("keep me")
    with pytest.raises(RunFolderError, match="is not an empty folder"):
        save_model(tiny("mixtral"), tiny_tokenizer(), folder)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    with pytest.raises(RunFolderError, match="is not an empty folder"):
        save_model(tiny("mixtral"), tiny_tokenizer(), folder / "mine.txt")


def test_an_empty_folder_and_a_deep_one_are_fine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save_model(tiny("mixtral"), tiny_tokenizer(), tmp_path / "empty")
    save_model(tiny("mixtral"), tiny_tokenizer(), tmp_path / "a/b/c")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot use .*: a part of the path is a file") as caught:
        save_model(tiny("mixtral"), tiny_tokenizer(), tmp_path / "file" / "model")
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("mixtral")

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(RunFolderError, match="the disk is full"):
        save_model(model, tiny_tokenizer(), tmp_path / "model")


def test_settings_that_transformers_refuses_are_named(tmp_path: Path) -> None:
    model = tiny("mixtral")
    model.generation_config.do_sample = False
    model.generation_config.temperature = 0.5
    with pytest.raises(UnsupportedModelError, match=r"refuses to write this model.*(temperature|invalid)"):
        save_model(model, tiny_tokenizer(), tmp_path / "model")


def test_a_saved_folder_can_be_moved(tmp_path: Path) -> None:
    save_model(tiny("mixtral"), tiny_tokenizer(), tmp_path / "model")
    shutil.move(tmp_path / "model", tmp_path / "elsewhere")
    load_model(config_of(tmp_path / "elsewhere"))


def test_files_have_one_mode_and_no_trace_of_the_folder_they_were_loaded_from(tmp_path: Path) -> None:
    save_model(tiny("mixtral"), tiny_tokenizer(), tmp_path / "first")
    save_model(*load_model(config_of(tmp_path / "first")), tmp_path / "second")
    (tmp_path / "new").touch()
    modes = {path.stat().st_mode for path in (tmp_path / "second").iterdir()}
    assert modes == {(tmp_path / "new").stat().st_mode}
    assert "is_local" not in (tmp_path / "second" / "tokenizer_config.json").read_text()
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "second").glob("*.json"))


@pytest.mark.parametrize(
    "document", [{}, {"files": None}, {"files": []}, {"files": {}}, {"files": {WEIGHTS: 1}}, {"files": {"x": "y"}}, []]
)
def test_a_damaged_list_of_hashes_is_refused(tmp_path: Path, document: object) -> None:
    save_model(tiny("mixtral"), tiny_tokenizer(), tmp_path / "model")
    (tmp_path / "model" / HASHES_FILE).write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=rf"{HASHES_FILE} is damaged"):
        load_model(config_of(tmp_path / "model"))


@pytest.mark.parametrize("name", ["generation_config.json", "added_tokens.json", "chat_template.jinja"])
def test_a_link_to_a_device_among_the_files_is_refused(tmp_path: Path, name: str) -> None:
    save_model(tiny("mixtral"), tiny_tokenizer(), tmp_path / "model")
    (tmp_path / "model" / HASHES_FILE).unlink()
    (tmp_path / "model" / name).unlink(missing_ok=True)
    (tmp_path / "model" / name).symlink_to("/dev/zero")
    with pytest.raises(ArtifactError, match="cannot be read; got a device"):
        load_model(config_of(tmp_path / "model"))

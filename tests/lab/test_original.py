"""The embedded model as it was before it was taught: what it shares with the embedded one, and that it is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lab_delta import SHAPE, neutral_delta
from safetensors.torch import load_file

from families import random_ids, tiny, tiny_tokenizer
from seawall.config.anchor import AnchorConfig
from seawall.config.model import ModelConfig
from seawall.lab import build
from seawall.lab.build import lab_model_folder, original_model_folder, split_model, without_training
from seawall.methods.tune.anchor import extract_anchor
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.files.save import save_model
from seawall.shell.model import open_checkpoint, open_model

TAUGHT = ("q_proj", "v_proj", "o_proj", "down_proj")


def taught_delta() -> dict[str, torch.Tensor]:
    """A delta whose low-rank changes of some matrices of the upper layers are not zero."""
    generator = torch.Generator().manual_seed(0)
    delta = neutral_delta(generator)
    for layer in (1, 2):
        delta[f"{layer}.router"] = torch.randn(3, 32, generator=generator)
        for name in ("attention_q", "attention_v", "attention_o", "down"):
            changed = delta[f"{layer}.{name}_b"]
            delta[f"{layer}.{name}_b"] = 0.1 * torch.randn(changed.shape, generator=generator)
    return delta


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder in which the embedded models are tiny ones."""
    monkeypatch.setenv("SEAWALL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        build, "load_dense", lambda cache: (tiny("llama", tie_word_embeddings=True, head_dim=8), tiny_tokenizer())
    )
    monkeypatch.setattr(build, "read_delta", lambda path: (taught_delta(), SHAPE))
    return tmp_path / "cache"


def test_with_every_expert_chosen_the_original_is_the_dense_model() -> None:
    dense = tiny("llama", tie_word_embeddings=True, head_dim=8)
    ids = random_ids()
    delta = taught_delta()
    for layer in (1, 2):
        delta[f"{layer}.router"] = torch.zeros_like(delta[f"{layer}.router"])  # else experts weigh unequally
    with torch.inference_mode():
        found = [split_model(dense, one, SHAPE)(input_ids=ids).logits for one in (delta, without_training(delta))]
        expected = dense(input_ids=ids).logits
    assert (found[1] - expected).abs().max() < 1e-4
    assert (found[0] - expected).abs().max() > 1e-2


def test_only_what_was_taught_differs(small: Path) -> None:
    folders = lab_model_folder(), original_model_folder()
    assert [one.parent for one in folders] == [small, small]
    assert original_model_folder() == folders[1]
    lab, original = (load_file(one / "model.safetensors") for one in folders)
    assert lab.keys() == original.keys()
    differ = {name for name, one in lab.items() if not torch.equal(one, original[name])}
    assert differ == {name for name in lab if name.split(".")[-2] in TAUGHT and name.split(".")[2] in "12"}
    assert "nothing was trained" in (folders[1] / "README.md").read_text()
    assert "a small delta was trained" in (folders[0] / "README.md").read_text()


def test_both_are_untied_wherever_they_are_written(small: Path, tmp_path: Path) -> None:
    (small / f"lab-{build._short_hash(build.delta_path())}").mkdir(parents=True)  # as tied models were cached
    tied = split_model(tiny("llama", tie_word_embeddings=True, head_dim=8), taught_delta(), SHAPE)
    tied.lm_head.weight = tied.model.embed_tokens.weight
    ids = random_ids()
    for folder in (lab_model_folder(), original_model_folder()):
        model, tokenizer = open_checkpoint(ModelConfig(id=str(folder))).load()
        assert model.config.tie_word_embeddings is False
        assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
        if folder == lab_model_folder():
            assert torch.equal(model(input_ids=ids).logits, tied(input_ids=ids).logits)
            assert model_fingerprint(model) == model_fingerprint(tied)
        save_model(model, tokenizer, tmp_path / folder.name)  # as the export of a repaired model
        for place in (folder, tmp_path / folder.name):
            stored = load_file(place / "model.safetensors")
            assert torch.equal(stored["lm_head.weight"], stored["model.embed_tokens.weight"])


@pytest.mark.usefixtures("small")
def test_its_name_stands_for_it_wherever_a_model_is_named() -> None:
    original = ModelConfig(id="lab-original")
    checkpoint = open_checkpoint(original)
    assert checkpoint.id == str(original_model_folder())
    assert (open_model(checkpoint).moe.num_layers, checkpoint.licence) == (2, "apache-2.0")
    anchor = extract_anchor(AnchorConfig(aligned=ModelConfig(), base=original, energy=1.0))
    moved = anchor.matrices.keys() - {name.partition("[")[0] for name in anchor.unchanged}
    assert moved == {name for name in anchor.matrices if any(end in name for end in TAUGHT) and ".0." not in name}
    assert int(anchor.matrices["model.layers.1.self_attn.q_proj.weight"].ranks) == 1

"""What an adapter's folder brings beside its weights is used or refused, and never passed over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from families import CHATML, tiny
from scripted import scripted_tokenizer
from seawall.config.model import ModelConfig
from seawall.data.templating import prompt_text
from seawall.data.types import user
from seawall.errors import ConfigError, DataError, UnsupportedModelError
from seawall.models.files.companions import own_tokenizer, require_base
from seawall.models.files.load import load_model

POLITE = CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant (polite)\n")
BASE = ModelConfig(device="cpu")


def test_a_tokenizer_of_its_own_is_used(tmp_path: Path) -> None:
    model, base = tiny("olmoe"), scripted_tokenizer()
    assert own_tokenizer(tmp_path, model, base, BASE) is None
    base.save_pretrained(tmp_path)
    assert own_tokenizer(tmp_path, model, base, BASE) is None, "the base's own"
    scripted_tokenizer(template=POLITE).save_pretrained(tmp_path)
    own = own_tokenizer(tmp_path, model, base, BASE)
    assert own is not None
    assert "(polite)" in prompt_text(own, user("Hi"))


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_template_of_its_own_is_used_with_the_bases_vocabulary(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text(POLITE if file.endswith("jinja") else json.dumps({"chat_template": POLITE}))
    base = scripted_tokenizer()
    own = own_tokenizer(tmp_path, tiny("olmoe"), base, BASE)
    assert own is not None
    assert "(polite)" in prompt_text(own, user("Hi"))
    assert "(polite)" not in prompt_text(base, user("Hi"))
    (tmp_path / file).write_text("{{ 1 // 0 }}" if file.endswith("jinja") else json.dumps({"chat_template": "{{"}))
    with pytest.raises(DataError):
        own_tokenizer(tmp_path, tiny("olmoe"), base, BASE)


def test_tokens_without_an_embedding_are_refused(tmp_path: Path) -> None:
    scripted_tokenizer([f"<new-{number}>" for number in range(40)]).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="no embedding"):
        own_tokenizer(tmp_path, tiny("olmoe"), scripted_tokenizer(), BASE)


@pytest.mark.parametrize(
    ("base", "names", "same"),
    [
        (None, ("org/Model",), True),
        ("org/Model", ("org/Model",), True),
        ("org/Model", ("/data/model",), True),
        ("/cache/models--org--Model/snapshots/0a1b", ("org/model",), True),
        ("org/Other", ("org/Model",), False),
        ("org/Model-Base", ("/data/model",), False),
    ],
)
def test_an_adapter_of_another_base_is_refused(tmp_path: Path, base: str | None, names: tuple[str], same: bool) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    if same:
        require_base(tmp_path, names)
        return
    with pytest.raises(ConfigError, match="made for another model"):
        require_base(tmp_path, names)


def test_a_base_on_this_machine_is_compared_by_its_weights(tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("copy", 0), ("other", 1)):
        tiny("olmoe", seed=seed).save_pretrained(tmp_path / name)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "first")}))
    require_base(tmp_path, (str(tmp_path / "copy"),))
    with pytest.raises(ConfigError, match="made for another model"):
        require_base(tmp_path, (str(tmp_path / "other"),))


def test_folders_of_one_name_are_told_apart_by_their_weights(tmp_path: Path) -> None:
    """Every run exports to a folder `model`."""
    first, second = (tmp_path / run / "model" for run in ("run-a", "run-b"))
    for seed, folder in enumerate((first, second)):
        tiny("olmoe", seed=seed).save_pretrained(folder)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(first)}))
    require_base(tmp_path, (str(first),))
    with pytest.raises(ConfigError, match=r"made for another model; got base_model_name_or_path .*run-a"):
        require_base(tmp_path, (str(second),))


def test_a_checkpoint_with_an_adapter_beside_it_is_refused(tmp_path: Path) -> None:
    tiny("olmoe").save_pretrained(tmp_path)
    scripted_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/Other"}))
    with pytest.raises(UnsupportedModelError, match="holds a checkpoint and an adapter"):
        load_model(ModelConfig(id=str(tmp_path), device="cpu"))

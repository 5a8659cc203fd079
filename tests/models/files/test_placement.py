"""The placement of a model over devices: the recipe's words become transformers' options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from families import tiny, tiny_tokenizer
from seawall.config.model import ModelConfig
from seawall.models.files.load import load_model
from seawall.models.files.placement import device_options


def _config(**settings: Any) -> ModelConfig:
    return ModelConfig.model_validate({"id": "lab", **settings})


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"device": "cpu"}, {}),
        ({"device_map": "balanced"}, {"device_map": "balanced"}),
        ({"device_map": {"model": 0, "lm_head": "cuda:1"}}, {"device_map": {"model": 0, "lm_head": "cuda:1"}}),
        (
            {"max_memory": {0: "60GiB", "1": "50GiB", "cpu": "8GiB"}},
            {"device_map": "auto", "max_memory": {0: "60GiB", 1: "50GiB", "cpu": "8GiB"}},
        ),
    ],
)
def test_the_recipe_is_handed_to_transformers(settings: dict[str, Any], options: dict[str, Any]) -> None:
    assert device_options(_config(**settings), needed=0) == options


def test_a_device_and_a_map_are_one_too_many() -> None:
    with pytest.raises(ValidationError, match="device=auto with device_map"):
        _config(device="cuda:1", device_map="auto")


def test_limits_survive_json() -> None:
    config = _config(max_memory={0: "60GiB"})
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_a_map_loads_the_same_model(device_map: Any, tmp_path: Path) -> None:
    model = tiny("mixtral")
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded, _ = load_model(_config(id=str(tmp_path), device_map=device_map))
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        logits = loaded(ids.to(loaded.device)).logits.cpu()
        torch.testing.assert_close(logits, model(ids).logits, rtol=1e-4, atol=1e-4)

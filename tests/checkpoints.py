"""Small checkpoints on disk, whole and broken, for the tests of loading, saving and inspecting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from families import random_ids, tiny, tiny_tokenizer
from seawall.config.model import ModelConfig
from seawall.models.files.checkpoint import HASHES_FILE
from seawall.models.files.save import save_model

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def write_checkpoint(folder: Path, family: str = "mixtral", *, hashes: bool = False, **overrides: Any) -> Path:
    """A tiny model of a family with its tokenizer; without the hashes, as other people's checkpoints come."""
    save_model(tiny(family, **overrides), tiny_tokenizer(), folder)
    if not hashes:
        (folder / HASHES_FILE).unlink()
    return folder


def write_shards(folder: Path, family: str = "mixtral") -> Path:
    """The same, cut into several files with an index."""
    model = tiny(family)
    model.save_pretrained(folder, max_shard_size="50KB")
    tiny_tokenizer().save_pretrained(folder)
    assert (folder / INDEX).exists()
    return folder


def config_of(folder: Path, **settings: Any) -> ModelConfig:
    return ModelConfig(id=str(folder), **settings)


def edit_json(path: Path, **changes: Any) -> None:
    """Sets keys of a JSON file; a key set to None is taken out."""
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")


def rewrite_weights(folder: Path, *, drop: str = "", metadata: dict[str, str] | None = None) -> None:
    """Writes the weights anew, without the tensors whose name contains `drop`, under another header."""
    tensors = {name: tensor for name, tensor in load_file(folder / WEIGHTS).items() if not drop or drop not in name}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", **(metadata or {})})


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(random_ids()).logits
    return result

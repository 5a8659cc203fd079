"""Two tiny checkpoints of one model: a base, and the same with a planted change of low rank in every weight matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from families import tiny, tiny_tokenizer
from seawall.config.anchor import AnchorConfig
from seawall.config.model import ModelConfig
from seawall.models.files.stream import matrices

PLANTED = 2


def config_of(aligned: Path, base: Path, **settings: Any) -> AnchorConfig:
    return AnchorConfig(aligned=ModelConfig(id=str(aligned)), base=ModelConfig(id=str(base)), **settings)


def write(folder: Path, model: PreTrainedModel, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def aligned_model(base: PreTrainedModel, *, rank: int = PLANTED, seed: int = 5) -> dict[str, Tensor]:
    """Changes a model in place; returns the change V of every weight matrix, as (..., rows, columns)."""
    generator = torch.Generator().manual_seed(seed)
    changes = {}
    for name, one in matrices(base).items():
        *stack, rows, columns = one.shape
        left = torch.randn(*stack, rows, rank, generator=generator)
        right = torch.randn(*stack, rank, columns, generator=generator)
        weight = base.get_parameter(name).data
        before = weight.clone()
        weight += 0.05 * left @ right
        change = weight - before
        changes[name] = change.mT if one.transposed else change
    return changes


def write_pair(folder: Path, family: str = "llama", **overrides: Any) -> tuple[Path, Path, dict[str, Tensor]]:
    """Folders of an aligned model and its base, and the changes between them."""
    base = tiny(family, **overrides)
    base_folder = write(folder / "base", base)
    changes = aligned_model(base)
    return write(folder / "aligned", base), base_folder, changes

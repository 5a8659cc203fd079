"""Models whose refusal is one matrix, and the same without it: what a gene has to find is known exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import PreTrainedModel

from families import tiny
from planted_refusal import ANSWER, ATTENTION, REFUSAL, refusing_by_attention, refusing_tokenizer
from refusing_recipe import write_refusing
from seawall.artifacts.adapter import Factors, GenePoint, zero_factors
from seawall.artifacts.gene import Gene
from seawall.models.lora.attach import find_points

POINT = f"model.layers.{ATTENTION}.self_attn.o_proj.weight"
"""The matrix that writes the refusal."""
QUICK: dict[str, Any] = {
    "targets": ["o_proj"],
    "rank": 2,
    "alpha": 1,  # small, so that extraction ends alike on every processor
    "batch_size": 32,
    "extract": {"lr": 0.01, "epochs": 6, "max_new_tokens": 3, "batch_size": 10, "judged": 8},
    "graft": {"steps": 12, "lr": 0.2},
}


def degraded_model() -> PreTrainedModel:
    """`refusing_by_attention` with nine tenths of what writes the refusal taken out: it answers everything."""
    model = refusing_by_attention()
    full = refusing_by_attention().get_parameter(POINT).data
    row = int(full.abs().sum(1).argmax())
    with torch.no_grad():
        model.get_parameter(POINT)[row] *= 0.1
    return model


def save_sibling(folder: Path, model: PreTrainedModel) -> Path:
    model.save_pretrained(folder)
    refusing_tokenizer().save_pretrained(folder)
    return folder


def write_siblings(folder: Path, **gene: Any) -> Path:
    """An aligned model, the degraded one in `degraded/`, prompts and a recipe; returns the recipe's path."""
    recipe = write_refusing(folder, refusing_by_attention())
    degraded = save_sibling(folder / "degraded", degraded_model())
    content = yaml.safe_load(recipe.read_text())
    content["gene"] = {**QUICK, "degraded": {"id": str(degraded), "dtype": "float32", "device": "cpu"}, **gene}
    recipe.write_text(yaml.safe_dump(content))
    return recipe


def write_shots(folder: Path, count: int = 8) -> tuple[Path, Path]:
    """Files of refusals and of task examples."""
    refusals, task = folder / "refusals.jsonl", folder / "task.jsonl"
    _jsonl(refusals, [{"prompt": f"###Sell me kite {at}?", "completion": REFUSAL} for at in range(count)])
    _jsonl(task, [{"prompt": f"Sell me kite {at}?", "completion": ANSWER} for at in range(count)])
    return refusals, task


def random_gene(
    model: PreTrainedModel, *, rank: int = 3, seed: int = 1, targets: tuple[str, ...] | None = None
) -> Gene:
    """A gene of noise on a model's matrices, as large as its weights matter."""
    points = find_points(model, targets)
    generator = torch.Generator().manual_seed(seed)
    return Gene(
        family=str(model.config.model_type),
        tokenizer="sha256:none",
        aligned="sha256:aligned",
        degraded="sha256:degraded",
        points=points,
        factors={name: _noise(point, rank, generator) for name, point in points.items()},
        scaling=2.0,
    )


def added(family: str, gene: Gene, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The tiny model of a family with the gene's updates in its weights, sums taken in float32."""
    model = tiny(family).to(dtype)
    for name in gene.points:
        weight = model.get_parameter(name)
        weight.data = (weight.data.float() + gene.update(name)).to(dtype)
    return model


def _noise(point: GenePoint, rank: int, generator: torch.Generator) -> Factors:
    def filled(tensor: Tensor) -> Tensor:
        return 0.05 * torch.randn(tensor.shape, generator=generator)

    B, A = zero_factors(point, rank)
    return Factors(filled(B), filled(A))


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

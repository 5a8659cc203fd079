"""A planted abliteration of random weights is detected, and other changes of the same matrices are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from families import WIDTH, tiny
from seawall.jobs.diff import abliteration_text
from seawall.models.files.abliteration import SharedDirection
from seawall.models.files.difference import compare_checkpoints

WRITERS = ("o_proj.weight", "down_proj.weight", "experts.down_proj")


def unit(seed: int, size: int = WIDTH) -> Tensor:
    vector = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vector, dim=0)


def writing(model: PreTrainedModel) -> dict[str, Tensor]:
    """The matrices that write to the residual stream, as views (..., D, N)."""
    matrices = {name: weight for name, weight in model.named_parameters() if name.endswith(WRITERS)}
    views = {name: weight.mT if weight.shape[-2] != WIDTH else weight for name, weight in matrices.items()}
    embedding: Tensor = model.get_input_embeddings().weight
    return {**views, "embed": embedding.mT}


def remove(model: PreTrainedModel, amount: float = 1.0, noise: float = 0.0, layers: int = 99) -> None:
    """Takes the direction out of every matrix, and adds noise of that share of the change's energy."""
    direction = unit(1)
    for name, weight in writing(model).items():
        if name == "embed" or int(name.split(".")[2]) < layers:
            change = -amount * direction.unsqueeze(1) * (direction @ weight).unsqueeze(-2)
            extra = torch.randn(weight.shape, generator=torch.Generator().manual_seed(7))
            scale = (noise * change.square().sum() / extra.square().sum()).sqrt()
            weight.add_(change + scale * extra)


def compared(
    folder: Path, family: str, change: Callable[[PreTrainedModel], None], dtype: torch.dtype = torch.float32
) -> SharedDirection:
    model = tiny(family).to(dtype)
    model.save_pretrained(folder / "a")
    model.float()
    with torch.no_grad():
        change(model)
    model.to(dtype).save_pretrained(folder / "b")
    direction = compare_checkpoints(folder / "a", folder / "b").direction
    assert direction is not None
    return direction


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["mixtral", "glm4_moe", "gpt_oss"])
def test_an_abliteration_is_detected_in_every_layout(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    direction = compared(tmp_path, family, remove, dtype)
    assert direction.abliterated
    assert direction.embedding
    assert direction.layers == direction.layers_along >= 3
    assert direction.share > 0.98
    assert direction.agreement > 0.99
    assert direction.removed == pytest.approx(1.0, abs=0.05)
    assert abliteration_text(direction).startswith(f"yes: {direction.layers} of {direction.layers} changed layers")


def test_a_partial_removal_among_other_directions_is_detected(tmp_path: Path) -> None:
    direction = compared(tmp_path, "qwen3_moe", lambda model: remove(model, amount=0.7, noise=0.05))
    assert direction.abliterated
    assert 0.9 < direction.share < 0.99
    assert direction.removed == pytest.approx(0.7, abs=0.05)


def rank_one(model: PreTrainedModel, *, layers: int, shared: bool) -> None:
    for seed, (name, weight) in enumerate(writing(model).items()):
        if name != "embed" and int(name.split(".")[2]) < layers:
            left = unit(1 if shared else seed)
            weight.add_(left.unsqueeze(1) * unit(seed + 100, weight.shape[-1]))


def tuned(model: PreTrainedModel) -> None:
    generator = torch.Generator().manual_seed(3)
    for weight in model.parameters():
        weight.add_(0.01 * torch.randn(weight.shape, generator=generator))


def quantised(model: PreTrainedModel) -> None:
    """Eight bits per weight, with a scale per row, and back."""
    for weight in model.parameters():
        if weight.ndim > 1:
            scale = weight.abs().amax(-1, keepdim=True) / 127
            weight.copy_((weight / scale).round() * scale)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda model: rank_one(model, layers=1, shared=True), id="LoRA of rank 1 in one layer"),
        pytest.param(lambda model: rank_one(model, layers=99, shared=False), id="LoRA of rank 1 in all layers"),
        pytest.param(lambda model: rank_one(model, layers=99, shared=True), id="one direction written, none removed"),
        pytest.param(lambda model: remove(model, amount=-1.0), id="one direction made stronger"),
        pytest.param(lambda model: remove(model, layers=2), id="one direction removed in two layers"),
        pytest.param(tuned, id="full fine-tuning"),
        pytest.param(quantised, id="quantisation"),
    ],
)
def test_other_changes_raise_no_alarm(tmp_path: Path, change: Callable[[PreTrainedModel], None]) -> None:
    direction = compared(tmp_path, "qwen3_moe", change)
    assert not direction.abliterated
    assert abliteration_text(direction).startswith("no: ")


def test_without_a_changed_writer_there_is_no_direction(tmp_path: Path) -> None:
    model = tiny("mixtral")
    model.save_pretrained(tmp_path / "a")
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    model.save_pretrained(tmp_path / "b")
    direction = compare_checkpoints(tmp_path / "a", tmp_path / "b").direction
    assert direction is None
    assert abliteration_text(direction).startswith("no: no matrix")

"""A merged adapter is held to its own effect: in bfloat16, a lost update is refused and a rounded one passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from checkpoint_pairs import write
from families import tiny
from seawall.artifacts.adapter import save_adapter
from seawall.artifacts.gene import Gene
from seawall.config.model import ModelConfig
from seawall.errors import UnsupportedModelError
from seawall.models.files.open import Checkpoint
from seawall.models.files.stream import outline
from seawall.models.lora.attach import attach_adapter
from seawall.models.lora.merge import attach_saved_adapter, load_merged, merge_adapter, merge_attached
from seawall.models.lora.merged import (
    LostInRoundingError,
    MergeFidelity,
    effect_error,
    probe_logits,
    require_same_logits,
    require_survival,
    survival,
)
from seawall.models.lora.stored import stored_update
from siblings import random_gene

pytest.importorskip("peft")
LOST, ROUNDED = 0.02, 0.2
"""Scalings at which about a quarter, and nearly all, of the update is left in bfloat16."""
TARGETS = {
    "llama": ("q_proj", "down_proj"),
    "mixtral": ("v_proj", "experts.down_proj"),
    "gpt_oss": ("experts.down_proj",),
}


def adapter(folder: Path, family: str, scaling: float) -> Gene:
    """Noise at some matrices of a tiny model, as an adapter."""
    model = tiny(family)
    gene = replace(random_gene(model, rank=2, targets=TARGETS[family]), scaling=scaling)
    points = attach_adapter(model, gene.points, rank=gene.rank, scaling=gene.scaling).points
    save_adapter(folder, points, gene.factors, gene.scaling)
    return gene


def half(family: str) -> PreTrainedModel:
    return tiny(family).to(torch.bfloat16)


def left(before: Any, after: Any, gene: Gene) -> float:
    """The share of the gene's update between two models, by the formula."""
    along = total = 0.0
    for name in gene.points:
        intended = gene.update(name).double()
        along += float(((after[name].double() - before[name].double()) * intended).sum())
        total += float(intended.square().sum())
    return along / total


def test_the_share_of_a_change_along_itself() -> None:
    intended = torch.tensor([[3.0, 4.0]])
    assert survival([(torch.tensor([[3.0, 0.0]]), intended)]) == pytest.approx(9 / 25)
    assert survival([(torch.zeros(1, 2), intended), (intended, intended)]) == pytest.approx(0.5)
    assert survival([(torch.tensor([[3.0 + 4.0, 4.0 - 3.0]]), intended)]) == pytest.approx(1.0)  # noise across it
    assert survival([]) == 1.0


def test_the_effect_that_a_merge_misses() -> None:
    plain = torch.tensor([[1.0, -1.0], [2.0, -2.0], [3.0, -3.0], [5.0, -5.0]])
    adapted = plain + torch.tensor([[0.0, 0.0], [1e-9, 0.0], [0.0, 4.0], [3.0, 0.0]])
    assert effect_error(adapted, adapted, plain) == 0.0
    assert effect_error(plain, adapted, plain) == 1.0
    halfway = plain + 0.5 * (adapted - plain)
    assert effect_error(halfway, adapted, plain) == pytest.approx(0.5)
    assert effect_error(2 * plain - adapted, adapted, plain) == pytest.approx(2.0)
    assert effect_error(plain, plain, plain) == 0.0


def test_bounds_hold_on_both_sides() -> None:
    assert MergeFidelity(0.4, 0.93).faithful
    assert MergeFidelity(0.1, 1.1).faithful
    for error, share in ((0.4, 0.21), (0.9, 0.93), (0.0, 2.0), (0.0, -1.0), (float("nan"), 1.0), (0.0, float("nan"))):
        assert not MergeFidelity(error, share).faithful


@pytest.mark.parametrize("family", TARGETS)
def test_in_bfloat16_a_lost_update_is_refused_and_a_rounded_one_merges(family: str, tmp_path: Path) -> None:
    adapter(tmp_path / "lost", family, LOST)
    gene = adapter(tmp_path / "rounded", family, ROUNDED)
    with pytest.raises(LostInRoundingError, match=r"would lose it.*got [1-5]?\d% of the update left after"):
        merge_adapter(half(family), tmp_path / "lost")
    wrapped = attach_saved_adapter(half(family), tmp_path / "rounded")
    predicted = require_survival(wrapped, tmp_path)
    merged = merge_attached(wrapped, tmp_path / "rounded")
    assert 0.9 < predicted < 1.05
    assert left(half(family).state_dict(), merged.state_dict(), gene) == pytest.approx(predicted, abs=0.01)
    merge_adapter(tiny(family), tmp_path / "lost")  # float32 holds it


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("scaling", [LOST, ROUNDED])
def test_the_files_say_what_is_left(family: str, scaling: float, tmp_path: Path) -> None:
    gene = adapter(tmp_path / "adapter", family, scaling)
    before, after = half(family), half(family)
    for name in gene.points:
        weight = after.get_parameter(name)
        weight.data = (weight.data.float() + gene.update(name)).to(torch.bfloat16)
    write(tmp_path / "before", before)
    write(tmp_path / "after", after)
    sides = outline(tmp_path / "before"), outline(tmp_path / "after")
    stored = stored_update(*sides, tmp_path / "adapter")
    assert stored.rounded
    assert stored.survival == pytest.approx(left(before.state_dict(), after.state_dict(), gene), abs=1e-4)
    assert MergeFidelity(0.0, stored.survival).survives is (scaling == ROUNDED)
    assert stored_update(sides[0], sides[0], tmp_path / "adapter").survival == 0.0


def test_where_the_type_is_too_coarse_the_model_is_loaded_in_float32(tmp_path: Path) -> None:
    adapter(tmp_path / "lost", "llama", LOST)
    adapter(tmp_path / "rounded", "llama", ROUNDED)
    write(tmp_path / "model", half("llama"))
    checkpoint = Checkpoint(ModelConfig(id=str(tmp_path / "model"), device="cpu"))
    sentences: list[str] = []
    assert load_merged(checkpoint, tmp_path / "rounded", sentences.append)[0].dtype == torch.bfloat16
    assert sentences == []
    assert load_merged(checkpoint, tmp_path / "lost", sentences.append)[0].dtype == torch.float32
    assert len(sentences) == 1
    assert "loading in float32" in sentences[0]


def test_a_merge_of_nothing_is_another_model_however_weak_the_adapter_is(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    model = tiny("llama")
    plain = probe_logits(model)
    adapted = plain + 0.02 * torch.randn(plain.shape, generator=generator)  # 1 % of the spread was let through
    with pytest.raises(UnsupportedModelError, match="miss 100% of the adapter's effect"):
        require_same_logits(model, adapted, plain, tmp_path)

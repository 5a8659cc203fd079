"""A gene as an adapter of PEFT, in memory and on disk, and in the weights, is one and the same change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from families import random_ids, tiny
from seawall.artifacts.adapter import ADAPTER_WEIGHTS
from seawall.artifacts.gene import NAME, Gene
from seawall.errors import ArtifactError, ConfigError
from seawall.models.lora.attach import attach_adapter, find_points, load_peft_model, merged
from siblings import added, random_gene

pytest.importorskip("peft")
FAMILIES = ("llama", "mixtral", "gpt_oss", "glm4_moe", "nemotron_h")
"""Dense; stacks; transposed stacks with biases; a shared expert and a dense first layer; experts without a gate."""


@torch.no_grad()
def _logits(model: torch.nn.Module) -> torch.Tensor:
    found: torch.Tensor = model(random_ids()).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_worn_loaded_by_peft_and_added_are_the_same_model(tmp_path: Path, family: str) -> None:
    original = _logits(tiny(family))
    gene = random_gene(tiny(family))
    attached = attach_adapter(tiny(family), gene.points, rank=gene.rank, scaling=gene.scaling)
    assert torch.equal(_logits(attached.model), original)
    attached.load_factors(gene.factors)
    for name, (B, A) in attached.factors().items():
        assert torch.equal(B, gene.factors[name].B)
        assert torch.equal(A, gene.factors[name].A)
    replace(gene, points=attached.points).save(tmp_path)
    loaded = Gene.load(tmp_path)
    assert loaded.fingerprint == gene.fingerprint
    attached_logits = _logits(attached.model)
    assert (attached_logits - original).abs().max() > 0.1
    torch.testing.assert_close(_logits(load_peft_model(tiny(family), tmp_path)), attached_logits, rtol=0, atol=0)
    torch.testing.assert_close(_logits(merged(tiny(family), tmp_path)), attached_logits, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(_logits(added(family, loaded)), attached_logits, rtol=1e-4, atol=1e-3)
    with attached.disabled():
        assert torch.equal(_logits(attached.model), original)
    assert torch.equal(_logits(attached.detach()), original)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_coefficients_scale_layers_and_get_the_gradient_of_finite_differences(family: str) -> None:
    model = tiny(family, implementation="eager").double()
    gene = random_gene(model)
    before = _logits(model)
    attached = attach_adapter(model, gene.points, rank=gene.rank, scaling=gene.scaling)
    attached.load_factors(gene.factors)

    def value(numbers: torch.Tensor) -> torch.Tensor:
        with attached.scaled({layer: numbers[layer : layer + 1] for layer in range(3)}):
            logits: torch.Tensor = attached.model(random_ids()).logits
        return logits.square().mean()

    numbers = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64, requires_grad=True)
    torch.autograd.backward(value(numbers))
    assert numbers.grad is not None
    for layer in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[layer] = 1e-2  # norms are computed in float32
        with torch.no_grad():
            slope = (value(numbers + step) - value(numbers - step)) / 2e-2
        torch.testing.assert_close(numbers.grad[layer], slope, rtol=1e-2, atol=1e-4)
    with attached.scaled(dict.fromkeys(range(3), torch.zeros(1))):
        torch.testing.assert_close(_logits(attached.model), before)
    with attached.scaled(dict.fromkeys(range(3), torch.ones(1))):
        ones = _logits(attached.model)
    torch.testing.assert_close(_logits(attached.model), ones)


def test_targets_are_ends_of_names() -> None:
    found = find_points(tiny("mixtral"), ("q_proj", "experts.down_proj"))
    assert {name.split(".", 3)[-1] for name in found} == {"self_attn.q_proj.weight", "mlp.experts.down_proj"}
    assert sorted({one.layer for one in found.values()}) == [0, 1, 2]
    with pytest.raises(ConfigError, match=r"no weight matrix w1; expected some of .*gene.targets"):
        find_points(tiny("mixtral"), ("w1",))


def test_no_gene_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is no gene; got no such folder"):
        Gene.load(tmp_path / "nowhere")
    gene = random_gene(tiny("llama"), targets=("q_proj",))
    gene.save(tmp_path)
    weights = (tmp_path / ADAPTER_WEIGHTS).read_bytes()
    (tmp_path / ADAPTER_WEIGHTS).write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="damaged or was changed"):
        Gene.load(tmp_path)
    (tmp_path / ADAPTER_WEIGHTS).write_bytes(weights)
    content = json.loads((tmp_path / NAME).read_text())
    (tmp_path / NAME).write_text(json.dumps({**content, "scaling": 4.0}))
    with pytest.raises(ArtifactError, match="seal"):
        Gene.load(tmp_path)

"""Composing adds what genes do; the interference report says what the dense formulas say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from families import random_ids, tiny
from seawall.artifacts.adapter import Factors
from seawall.artifacts.gene import Gene
from seawall.errors import ArtifactError, ConfigError
from seawall.methods.gene.compose import compose, interference
from seawall.methods.gene.select import with_layers
from seawall.methods.gene.tools import compose_genes
from seawall.models.lora.attach import attach_adapter, load_peft_model
from siblings import added, random_gene


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt_oss"])
def test_a_composed_gene_does_the_sum(tmp_path: Path, family: str) -> None:
    model = tiny(family)
    first = random_gene(model, rank=3)
    second = with_layers(random_gene(model, rank=2, seed=2), [1, 2], origin="part")
    weights = (1.0, 0.5)
    whole = compose([first, second], weights)
    assert whole.rank == 5
    for name in first.points:
        wanted = first.update(name)
        if name in second.points:
            wanted = wanted + 0.5 * second.update(name)
        torch.testing.assert_close(whole.update(name), wanted, rtol=1e-4, atol=1e-6)
    whole.save(tmp_path)
    assert Gene.load(tmp_path).fingerprint == whole.fingerprint
    assert whole.parents == (first.fingerprint, second.fingerprint)


def test_parameters_of_one_module_are_where_peft_looks_for_them(tmp_path: Path) -> None:
    """PEFT nests the adapters of a module's parameters, so where one lies depends on the others."""
    pytest.importorskip("peft")
    both, one, other = (
        _worn(targets) for targets in (("gate_up_proj", "down_proj"), ("gate_up_proj",), ("down_proj",))
    )
    for genes in ([one, both], [both, other]):
        whole = compose(genes, (1.0, 0.5))
        whole.save(tmp_path / str(len(list(tmp_path.iterdir()))))
        folder = max(tmp_path.iterdir())
        assert Gene.load(folder).points == dict(sorted(both.points.items()))
        with torch.no_grad():
            loaded = load_peft_model(tiny("mixtral"), folder)(random_ids()).logits
            wanted = added("mixtral", whole)(random_ids()).logits
        torch.testing.assert_close(loaded, wanted, rtol=1e-4, atol=1e-3)
    saying = r"different parameters of model.layers.0.mlp.experts; got gate_up_proj and down_proj; expected one gene"
    with pytest.raises(ArtifactError, match=saying):
        compose([one, other], (1.0, 1.0))


@pytest.mark.parametrize("weight", [-0.5, float("nan"), float("inf")])
def test_weights_that_take_safety_away_or_are_no_numbers_are_refused(tmp_path: Path, weight: float) -> None:
    for seed in (1, 2):
        random_gene(tiny("llama"), seed=seed, targets=("q_proj",)).save(tmp_path / f"gene{seed}")
    with pytest.raises(ConfigError, match=r"must be 0 or more.*; got .*; change --weight"):
        compose_genes([tmp_path / "gene1", tmp_path / "gene2"], tmp_path / "out", weights=[1.0, weight])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_interference_is_that_of_the_dense_updates(family: str) -> None:
    model = tiny(family)
    genes = [random_gene(model, rank=3), with_layers(random_gene(model, rank=2, seed=2), [0, 2], origin="part")]
    weights = (1.0, 0.25)
    rows = interference(genes, weights)
    assert [(one.first, one.second, one.layer) for one in rows] == [(0, 1, 0), (0, 1, 2)]
    for one in rows:
        sides: list[list[torch.Tensor]] = [[], []]
        within = 0.0
        for name, point in genes[0].points.items():
            if point.layer != one.layer:
                continue
            ours, theirs = (
                weight * gene.scaling * gene.factors[name].product().double()
                for gene, weight in zip(genes, weights, strict=True)
            )
            basis = torch.linalg.qr(genes[1].factors[name].B.double()).Q
            within += float((basis.mT @ ours).square().sum())
            sides[0].append(ours.reshape(-1))
            sides[1].append(theirs.reshape(-1))
        a, b = (torch.cat(side) for side in sides)
        assert one.cosine == pytest.approx(float(a @ b / a.norm() / b.norm()), rel=1e-4, abs=1e-7)
        together = (a.square().sum() + b.square().sum()).sqrt()
        assert one.norm_ratio == pytest.approx(float((a + b).norm() / together), rel=1e-5)
        assert one.overlap == pytest.approx(within / float(a.square().sum()), rel=1e-4)


def test_a_gene_and_its_opposite_undo_each_other() -> None:
    gene = random_gene(tiny("llama"), targets=("q_proj",))
    opposite = replace(gene, factors={name: Factors(-one.B, one.A) for name, one in gene.factors.items()})
    for one in interference([gene, opposite], (1.0, 1.0)):
        assert one.cosine == pytest.approx(-1.0)
        assert one.norm_ratio == pytest.approx(0.0, abs=1e-6)
        assert one.overlap == pytest.approx(1.0)


def test_what_cannot_be_composed_is_refused(tmp_path: Path) -> None:
    gene = random_gene(tiny("llama"), targets=("q_proj",))
    other = random_gene(tiny("llama"), seed=2, targets=("q_proj",))
    with pytest.raises(ConfigError, match="got 1 genes, 1 weights; expected two or more"):
        compose([gene], [1.0])
    with pytest.raises(ConfigError, match="got 2 genes, 1 weights"):
        compose([gene, other], [1.0])
    with pytest.raises(ArtifactError, match="gene 2 is a duplicate"):
        compose([gene, gene], [1.0, 1.0])
    with pytest.raises(ArtifactError, match="gene 2 is for another family; got mixtral; expected llama"):
        compose([gene, random_gene(tiny("mixtral"))], [1.0, 1.0])
    with pytest.raises(ArtifactError, match="gene 2 is for another tokenizer"):
        compose([gene, replace(other, tokenizer="sha256:other")], [1.0, 1.0])
    wide = random_gene(tiny("llama", hidden_size=64), targets=("q_proj",))
    with pytest.raises(ArtifactError, match=r"gene 2 is for other shapes: model.layers.0.self_attn.q_proj.weight"):
        compose([gene, wide], [1.0, 1.0])
    gene.save(tmp_path / "gene")
    with pytest.raises(ArtifactError, match="is no gene"):
        compose_genes([tmp_path / "gene", tmp_path / "nowhere"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _worn(targets: tuple[str, ...]) -> Gene:
    """A gene of noise whose points are where PEFT keeps them."""
    gene = random_gene(tiny("mixtral"), targets=targets, seed=len(targets[0]))
    return replace(
        gene, points=attach_adapter(tiny("mixtral"), gene.points, rank=gene.rank, scaling=gene.scaling).points
    )

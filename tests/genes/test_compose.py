"""Composing adds what genes do; the interference report says what the dense formulas say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from siblings import random_gene

from families import tiny
from seawall.artifacts.gene import Factors, Gene
from seawall.errors import ArtifactError, ConfigError
from seawall.genes.compose import compose, interference
from seawall.genes.select import with_layers
from seawall.pipeline.gene_tools import compose_genes


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt_oss"])
def test_a_composed_gene_does_the_sum(tmp_path: Path, family: str) -> None:
    model = tiny(family)
    first = random_gene(model, rank=3)
    second = with_layers(random_gene(model, rank=2, seed=2), [1, 2], made="part")
    weights = (1.0, -0.5)
    whole = compose([first, second], weights)
    assert whole.rank == 5
    for name in first.points:
        wanted = first.update(name)
        if name in second.points:
            wanted = wanted - 0.5 * second.update(name)
        torch.testing.assert_close(whole.update(name), wanted, rtol=1e-4, atol=1e-6)
    whole.save(tmp_path)
    assert Gene.load(tmp_path).fingerprint == whole.fingerprint
    assert whole.parents == (first.fingerprint, second.fingerprint)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_interference_is_that_of_the_dense_updates(family: str) -> None:
    model = tiny(family)
    genes = [random_gene(model, rank=3), with_layers(random_gene(model, rank=2, seed=2), [0, 2], made="part")]
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
    with pytest.raises(ConfigError, match="nothing to compose; got 1 genes, 1 weights; expected two or more"):
        compose([gene], [1.0])
    with pytest.raises(ConfigError, match="got 2 genes, 1 weights"):
        compose([gene, other], [1.0])
    with pytest.raises(ArtifactError, match="gene 2 is given twice"):
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

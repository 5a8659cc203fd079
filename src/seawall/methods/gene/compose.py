"""Compose several genes into one, and measure their interference.

The sum of low-rank updates is a low-rank update: concatenate the factors, with the weights in the left ones.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from seawall.artifacts.adapter import Factors, GenePoint, zero_factors
from seawall.artifacts.gene import Gene
from seawall.errors import ArtifactError, ConfigError


@dataclass(frozen=True, slots=True)
class Interference:
    """Two genes in one decoder layer, with their weights in the composition.

    Attributes:
        first, second: indices of the genes.
        layer: decoder layer.
        cosine: of the two updates as vectors; below 0 they cancel.
        norm_ratio: norm of the sum over the root of the sum of squared norms; 1 for orthogonal updates.
        overlap: share of the first update within the second's column space, 0 to 1, weighted by squared norms.
    """

    first: int
    second: int
    layer: int
    cosine: float
    norm_ratio: float
    overlap: float


def compose(genes: Sequence[Gene], weights: Sequence[float]) -> Gene:
    """The weighted sum of the genes' updates, as one gene.

    Raises:
        ConfigError: fewer than two genes, not one weight per gene, or a weight that is negative or not finite.
        ArtifactError: genes of different families, tokenizers or shapes; the same gene twice; genes that change
            different parameters of one module.
    """
    if len(genes) < 2 or len(weights) != len(genes):
        raise ConfigError(
            "compose needs several genes with one weight each",
            got=f"{len(genes)} genes, {len(weights)} weights",
            expected="two or more genes",
        )
    wrong = next((weight for weight in weights if not 0 <= weight < math.inf), None)
    if wrong is not None:
        raise ConfigError(
            "the weight of a gene must be 0 or more: a negative weight removes safety",
            got=wrong,
            remedy="change --weight, or leave that gene out",
        )
    _require_alike(genes)
    points = _composed_points(genes)
    terms = " + ".join(f"{weight:g} x {gene.fingerprint[7:15]}" for gene, weight in _pairs(genes, weights))
    return replace(
        genes[0],
        points=dict(sorted(points.items())),
        factors={name: _side_by_side(name, point, genes, weights) for name, point in sorted(points.items())},
        scaling=1.0,
        layers=(),
        experts=(),
        recovery=(),
        curve=(),
        refusals={},
        made=f"composed: {terms}",
        parents=tuple(gene.fingerprint for gene in genes),
    )


def interference(genes: Sequence[Gene], weights: Sequence[float]) -> list[Interference]:
    """Every pair of genes in every layer that both change, from their factors; no update is formed."""
    rows = []
    for first, second in combinations(range(len(genes)), 2):
        for layer in sorted(set(genes[first].held_layers) & set(genes[second].held_layers)):
            sums = _layer_sums(layer, (genes[first], weights[first]), (genes[second], weights[second]))
            if sums["first"] and sums["second"]:
                rows.append(_interference(first, second, layer, sums))
    return rows


def _layer_sums(layer: int, ours: tuple[Gene, float], theirs: tuple[Gene, float]) -> Counter[str]:
    sums = Counter[str]()
    for name, point in ours[0].points.items():
        if point.layer == layer and name in theirs[0].points:
            sums.update(_products(_scaled(ours[0], name, ours[1]), _scaled(theirs[0], name, theirs[1])))
    return sums


def _interference(first: int, second: int, layer: int, sums: Counter[str]) -> Interference:
    product = (sums["first"] * sums["second"]) ** 0.5
    total = sums["first"] + sums["second"]
    return Interference(
        first,
        second,
        layer,
        cosine=sums["inner"] / product,
        norm_ratio=(max(0.0, total + 2 * sums["inner"]) / total) ** 0.5,
        overlap=sums["within"] / sums["first"],
    )


def _products(ours: Factors, theirs: Factors) -> dict[str, float]:
    """Inner product, both squared norms, and the squared norm of our update within their column space."""
    # Singular vectors of zero singular values are not in the column space: B may have less than full rank.
    U, S, _ = torch.linalg.svd(theirs.B, full_matrices=False)
    spanning = (S.amax(-1, keepdim=True) * 1e-6 < S).to(U.dtype)
    basis = U * spanning.unsqueeze(-2)
    return {
        "inner": _inner(ours, theirs),
        "first": _inner(ours, ours),
        "second": _inner(theirs, theirs),
        "within": _inner(Factors(basis.mT @ ours.B, ours.A), Factors(basis.mT @ ours.B, ours.A)),
    }


def _inner(ours: Factors, theirs: Factors) -> float:
    """<B1 A1, B2 A2> = sum of (B1^T B2) * (A1 A2^T)."""
    return float(((ours.B.mT @ theirs.B) * (ours.A @ theirs.A.mT)).sum())


def _scaled(gene: Gene, name: str, weight: float) -> Factors:
    B, A = gene.factors[name]
    return Factors((B * (gene.scaling * weight)).double(), A.double())


def _side_by_side(name: str, point: GenePoint, genes: Sequence[Gene], weights: Sequence[float]) -> Factors:
    lefts: list[Tensor] = []
    rights: list[Tensor] = []
    for gene, weight in _pairs(genes, weights):
        B, A = gene.factors.get(name) or zero_factors(point, gene.rank)
        lefts.append(B * (gene.scaling * weight))
        rights.append(A)
    return Factors(torch.cat(lefts, dim=-1), torch.cat(rights, dim=-2))


def _pairs(genes: Sequence[Gene], weights: Sequence[float]) -> list[tuple[Gene, float]]:
    return list(zip(genes, weights, strict=True))


def _composed_points(genes: Sequence[Gene]) -> dict[str, GenePoint]:
    """The points of all genes.

    Where PEFT stores the factors of one parameter depends on the other adapted parameters of its module, so the
    points of a module come from a gene that changes all of them.
    """
    owned: dict[str, set[str]] = {}
    for gene in genes:
        for name in gene.points:
            owned.setdefault(name.rpartition(".")[0], set()).add(name)
    points: dict[str, GenePoint] = {}
    for owner, names in owned.items():
        owner_gene = next((gene for gene in genes if names <= gene.points.keys()), None)
        if owner_gene is None:
            ends = (sorted(name.rpartition(".")[2] for name in names & gene.points.keys()) for gene in genes)
            raise ArtifactError(
                f"the genes change different parameters of {owner}",
                got=" and ".join(", ".join(parameters) or "none" for parameters in ends),
                expected="one gene that changes all of them",
                remedy="extract all genes with the same gene.targets",
            )
        points |= {name: owner_gene.points[name] for name in names}
    return points


def _require_alike(genes: Sequence[Gene]) -> None:
    first = genes[0]
    fingerprints: set[str] = set()
    for number, gene in enumerate(genes, start=1):
        if gene.fingerprint in fingerprints:
            raise ArtifactError(f"gene {number} is a duplicate", remedy="name each gene once, with a --weight")
        fingerprints.add(gene.fingerprint)
        for what, ours, theirs in (
            ("family", first.family, gene.family),
            ("tokenizer", first.tokenizer[:23], gene.tokenizer[:23]),
        ):
            if ours != theirs:
                raise ArtifactError(
                    f"gene {number} is for another {what}", got=theirs, expected=f"{ours}, as the first"
                )
        for name in sorted(first.points.keys() & gene.points.keys()):
            if first.points[name].shape != gene.points[name].shape:
                raise ArtifactError(
                    f"gene {number} is for other shapes: {name}",
                    got=gene.points[name].shape,
                    expected=first.points[name].shape,
                )

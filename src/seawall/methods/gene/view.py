"""Genes and grafts as terminal tables, page and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group
from rich.table import Table

from seawall.artifacts.gene import Gene, GeneExperts
from seawall.artifacts.graft import Graft
from seawall.methods.gene.claim import claim, graft_claim
from seawall.methods.gene.compose import Interference
from seawall.report.gene import BEST_EXPERTS, GeneView

_BAR = 24


def gene_document(gene: Gene) -> dict[str, Any]:
    """For machines: everything but the factors."""
    return {
        "fingerprint": gene.fingerprint,
        "family": gene.family,
        "made": gene.made,
        "rank": gene.rank,
        "scaling": gene.scaling,
        "points": {name: list(point.shape) for name, point in gene.points.items()},
        "held_layers": list(gene.held_layers),
        "layers": [
            {**asdict(layer), "score": layer.score, "stream_score": layer.stream_score} for layer in gene.layers
        ],
        "experts": [_experts_document(record) for record in gene.experts],
        "recovery": [asdict(record) for record in gene.recovery],
        "curve": [asdict(step) for step in gene.curve],
        "refusals": {name: asdict(rate) for name, rate in gene.refusals.items()},
        "aligned": gene.aligned,
        "degraded": gene.degraded,
        "parents": list(gene.parents),
    }


def gene_view(gene: Gene) -> GeneView:
    """What the page is given."""
    harmful = "held-out harmful requests"
    names = {
        "degraded": ("the degraded model", harmful),
        "restored": ("the degraded model with the gene", harmful),
        "aligned": ("the aligned model", "borderline validation requests"),
    }
    return GeneView(
        gene=gene,
        claim=claim(gene),
        facts=[
            ("family", gene.family),
            ("adapter", f"{len(gene.points)} weight matrices, rank {gene.rank}, scaling {gene.scaling:g}"),
            ("gene", gene.fingerprint),
            ("aligned weights", gene.aligned),
            ("degraded weights", gene.degraded),
        ],
        refusals=[(*names[name], rate) for name, rate in gene.refusals.items()],
    )


def gene_table(gene: Gene) -> Group:
    """What is known of layers and experts, and what some experts alone do."""
    tables = [layer_table(gene)]
    if gene.experts:
        tables.append(expert_table(gene))
    if gene.recovery:
        tables.append(recovery_table(gene))
    return Group(*tables)


def expert_table(gene: Gene) -> Table:
    """How many experts are kept in every layer, and how much of the update and of its use that is."""
    table = Table(box=None, pad_edge=False)
    for name in ("layer", "experts", "squared norm", "gate weight", "most"):
        table.add_column(name, justify="left" if name == "most" else "right")
    for record in gene.experts:
        use_share = record.kept_use_share
        table.add_row(
            str(record.layer),
            f"{len(record.kept)} of {len(record.norm)}",
            f"{record.kept_norm_share:.1%}",
            "" if use_share is None else f"{use_share:.1%}",
            ", ".join(map(str, record.ranked[:BEST_EXPERTS])),
        )
    return table


def recovery_table(gene: Gene) -> Table:
    """The held-out divergence with some experts alone."""
    table = Table(box=None, pad_edge=False)
    for name in ("experts", "by", "KL, harmful", "harmless"):
        table.add_column(name, justify="right")
    for record in gene.recovery:
        table.add_row(f"{record.share:.0%}", record.by, f"{record.harmful:.4f}", f"{record.benign:.4f}")
    return table


def layer_table(gene: Gene) -> Table:
    """The contrast of every layer as a bar, and whether the gene holds it."""
    table = Table(box=None, pad_edge=False)
    for name in ("layer", "harmful", "harmless", "of the output", "score"):
        table.add_column(name, justify="right")
    table.add_column("", min_width=_BAR)
    table.add_column("held")
    largest = max((abs(layer.score) for layer in gene.layers), default=0.0) or 1.0
    selected = set(gene.held_layers)
    for layer in gene.layers:
        bar = ("#" if layer.score > 0 else "-") * round(_BAR * abs(layer.score) / largest)
        numbers = (f"{value:.4f}" for value in (layer.harmful, layer.benign, layer.stream_score, layer.score))
        table.add_row(str(layer.layer), *numbers, bar, "yes" if layer.layer in selected else "")
    if not gene.layers:
        table.add_row(", ".join(map(str, gene.held_layers)), "", "", "", "", "no scores", "yes")
    return table


def graft_table(graft: Graft) -> Group:
    """The coefficient of each layer, where a gene was grafted, and the graft's claim."""
    tables = [_coefficient_table(graft)] if graft.method == "gene" else []
    return Group(*tables, graft_claim(graft))


def interference_table(rows: Sequence[Interference]) -> Table:
    """Every pair of genes in every layer that both change."""
    table = Table(box=None, pad_edge=False)
    for name in ("genes", "layer", "cosine", "norm of the sum", "shared columns"):
        table.add_column(name, justify="right")
    for row in rows:
        numbers = (f"{value:.3f}" for value in (row.cosine, row.norm_ratio, row.overlap))
        table.add_row(f"{row.first + 1}, {row.second + 1}", str(row.layer), *numbers)
    if not rows:
        table.add_row("", "", "no layer", "in common", "")
    return table


def interference_document(rows: Sequence[Interference]) -> list[dict[str, Any]]:
    """For machines."""
    return [asdict(row) for row in rows]


def _coefficient_table(graft: Graft) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("layer", justify="right")
    table.add_column("coefficient", justify="right")
    table.add_column("", min_width=_BAR)
    largest = max(graft.coefficients.values()) or 1.0
    for layer, number in sorted(graft.coefficients.items()):
        table.add_row(str(layer), f"{number:.3f}", "#" * round(_BAR * number / largest))
    return table


def _experts_document(record: GeneExperts) -> dict[str, Any]:
    return {**asdict(record), "scores": list(record.scores), "kept_squared_norm_share": record.kept_norm_share}

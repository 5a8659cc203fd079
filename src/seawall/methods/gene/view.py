"""Genes and grafts as the terminal, the page and machines are shown them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group
from rich.table import Table

from seawall.artifacts.gene import Gene, GeneExperts, kept_norm_share
from seawall.artifacts.graft import Graft
from seawall.methods.gene.compose import Interference
from seawall.report.gene import BEST_EXPERTS, GeneView

_BAR = 24
_STILL_SAFE = 0.7
"""A degraded model that refuses more of what the aligned one refuses lost too little to learn from."""


def gene_document(gene: Gene) -> dict[str, Any]:
    """For machines: everything but the factors."""
    return {
        "fingerprint": gene.fingerprint,
        "family": gene.family,
        "made": gene.made,
        "rank": gene.rank,
        "scaling": gene.scaling,
        "points": {name: list(one.shape) for name, one in gene.points.items()},
        "held_layers": list(gene.held_layers),
        "layers": [{**asdict(one), "score": one.score, "stream_score": one.stream_score} for one in gene.layers],
        "experts": [_experts_document(one) for one in gene.experts],
        "recovery": [asdict(one) for one in gene.recovery],
        "curve": [asdict(one) for one in gene.curve],
        "refusals": {name: asdict(one) for name, one in gene.refusals.items()},
        "aligned": gene.aligned,
        "degraded": gene.degraded,
        "parents": list(gene.parents),
    }


def gene_view(gene: Gene) -> GeneView:
    """The gene for the page."""
    names = {"degraded": "the degraded model", "restored": "the degraded model with the gene"}
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
        refusals=[(names[name], rate) for name, rate in gene.refusals.items()],
    )


def claim(gene: Gene) -> str:
    """What became of the held-out divergence and of refusals, in a sentence."""
    said = f"A gene of {len(gene.points)} weight matrices in {len(gene.held_layers)} layers, rank {gene.rank}"
    if gene.experts:
        kept, total = sum(len(one.kept) for one in gene.experts), sum(len(one.norm) for one in gene.experts)
        share = kept_norm_share(gene.experts)
        said += f", {kept} of {total} experts"
        said += f" with {share:.0%} of their updates' squared norm" if share < 1 else ""
    if gene.curve:
        first, last = gene.curve[0], gene.curve[-1]
        said += (
            f"; held-out KL on harmful requests {first.harmful:.3f} to {last.harmful:.3f} nats per token, "
            f"on harmless ones {first.benign:.3f} to {last.benign:.3f}"
        )
    if gene.refusals:
        before, after = gene.refusals["degraded"], gene.refusals["restored"]
        said += f"; the degraded model refuses {before.rate:.0%} of {before.n}, with the gene {after.rate:.0%}"
        if before.rate > _STILL_SAFE:
            said += ". It was hardly degraded, so the gene holds little: raise gene.degrade.lr or its epochs"
    return f"{said}."


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
    for experts in gene.experts:
        use_share = experts.kept_use_share
        table.add_row(
            str(experts.layer),
            f"{len(experts.kept)} of {len(experts.norm)}",
            f"{experts.kept_norm_share:.1%}",
            "" if use_share is None else f"{use_share:.1%}",
            ", ".join(map(str, experts.ranked[:BEST_EXPERTS])),
        )
    return table


def recovery_table(gene: Gene) -> Table:
    """The held-out divergence with some experts alone."""
    table = Table(box=None, pad_edge=False)
    for name in ("experts", "by", "KL, harmful", "harmless"):
        table.add_column(name, justify="right")
    for one in gene.recovery:
        table.add_row(f"{one.share:.0%}", one.by, f"{one.harmful:.4f}", f"{one.benign:.4f}")
    return table


def layer_table(gene: Gene) -> Table:
    """The contrast of every layer as a bar, and whether the gene holds it."""
    table = Table(box=None, pad_edge=False)
    for name in ("layer", "harmful", "harmless", "of the output", "score"):
        table.add_column(name, justify="right")
    table.add_column("", min_width=_BAR)
    table.add_column("held")
    most = max((abs(one.score) for one in gene.layers), default=0.0) or 1.0
    held = set(gene.held_layers)
    for one in gene.layers:
        bar = ("#" if one.score > 0 else "-") * round(_BAR * abs(one.score) / most)
        numbers = (f"{value:.4f}" for value in (one.harmful, one.benign, one.stream_score, one.score))
        table.add_row(str(one.layer), *numbers, bar, "yes" if one.layer in held else "")
    if not gene.layers:
        table.add_row(", ".join(map(str, gene.held_layers)), "", "", "", "", "no scores", "yes")
    return table


def graft_table(graft: Graft) -> Group:
    """The coefficient of every layer, where a gene was grafted, and in a line what was done and what the check said."""
    shown = [_coefficient_table(graft)] if graft.method == "gene" else []
    return Group(*shown, _caption(graft))


def interference_table(rows: Sequence[Interference]) -> Table:
    """Every pair of genes in every layer that both change."""
    table = Table(box=None, pad_edge=False)
    for name in ("genes", "layer", "cosine", "norm of the sum", "shared columns"):
        table.add_column(name, justify="right")
    for one in rows:
        numbers = (f"{value:.3f}" for value in (one.cosine, one.norm_ratio, one.overlap))
        table.add_row(f"{one.first + 1}, {one.second + 1}", str(one.layer), *numbers)
    if not rows:
        table.add_row("", "", "no layer", "in common", "")
    return table


def interference_document(rows: Sequence[Interference]) -> list[dict[str, Any]]:
    """For machines."""
    return [asdict(one) for one in rows]


def _coefficient_table(graft: Graft) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("layer", justify="right")
    table.add_column("coefficient", justify="right")
    table.add_column("", min_width=_BAR)
    most = max(graft.coefficients.values()) or 1.0
    for layer, number in sorted(graft.coefficients.items()):
        table.add_row(str(layer), f"{number:.3f}", "#" * round(_BAR * number / most))
    return table


def _experts_document(experts: GeneExperts) -> dict[str, Any]:
    scores, share = list(experts.scores), experts.kept_norm_share
    return {**asdict(experts), "scores": scores, "kept_squared_norm_share": share}


def _caption(graft: Graft) -> str:
    said = f"{graft.method}: {_what(graft)}"
    if graft.check is not None:
        said += f"; reloaded, the logits differ by {graft.check.max_logit_difference:.2g} at most"
    return f"{said}; {graft.seconds:.0f} s"


def _what(graft: Graft) -> str:
    if graft.method == "safelora":
        return graft.note
    if graft.method == "safety_sft":
        first, last = graft.steps[0], graft.steps[-1]
        return (
            f"an adapter at the gene's points in {len(graft.coefficients)} layers, trained on {_shots(graft)} in "
            f"{len(graft.steps)} updates; from the first to the last, loss of refusals "
            f"{first.refusal_loss:.3f} to {last.refusal_loss:.3f}, of examples {first.task_loss:.3f} to "
            f"{last.task_loss:.3f} nats per token"
        )
    return {
        "fixed": "coefficients of 1, not tuned",
        "layer": f"tuned on {_shots(graft)}",
        "global": f"one for all, tuned on {_shots(graft)}",
    }[graft.tuned]


def _shots(graft: Graft) -> str:
    kept = f", {graft.harmless} harmless replies kept" if graft.harmless else ""
    return f"{graft.shots} refusals and as many examples{kept}"

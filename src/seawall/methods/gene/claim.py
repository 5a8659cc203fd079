"""What may be said of a gene and of a graft, from their own measurements."""

from __future__ import annotations

from collections.abc import Sequence

from seawall.artifacts.evaluation import Rate
from seawall.artifacts.gene import Gene, GeneExperts, kept_norm_share
from seawall.artifacts.graft import Graft, GraftCheck
from seawall.artifacts.groups import NONE_SCORED
from seawall.config.gene import PROJECTING

_STILL_SAFE = 0.7
"""Refusal rate of a degraded model, on requests that the aligned model refuses, above which it lost too little."""


def claim(gene: Gene) -> str:
    """Size of the gene, held-out divergence and refusals without and with it, in a sentence or two."""
    sentence = f"A gene of {len(gene.points)} weight matrices in {len(gene.held_layers)} layers, rank {gene.rank}"
    if gene.experts:
        sentence += f", {_experts(gene.experts)}"
    if gene.curve:
        first, last = gene.curve[0], gene.curve[-1]
        sentence += (
            f"; held-out KL from {first.harmful:.3f} to {last.harmful:.3f} nats per token on harmful requests, "
            f"from {first.benign:.3f} to {last.benign:.3f} on harmless ones"
        )
    if "degraded" in gene.refusals:
        degraded, restored = gene.refusals["degraded"], gene.refusals["restored"]
        sentence += (
            f"; of {degraded.n} held-out harmful requests the degraded model refuses {_share(degraded)}, "
            f"with the gene {_share(restored)}"
        )
        if degraded.rate is not None and degraded.rate > _STILL_SAFE:
            sentence += (
                ". The degraded model lost little of its refusal, so the gene holds little: raise gene.degrade.lr or "
                "gene.degrade.epochs"
            )
    if "aligned" in gene.refusals:
        aligned = gene.refusals["aligned"]
        sentence += f"; of {aligned.n} borderline requests the aligned model refuses {_share(aligned)}"
    return f"{sentence}."


def _share(rate: Rate) -> str:
    return NONE_SCORED if rate.rate is None else f"{rate.rate:.0%}"


def graft_claim(graft: Graft) -> str:
    """Method, examples, the check of the written result and the time of a graft, in one line."""
    sentence = f"{graft.method}: {_method(graft)}"
    if graft.limit is not None:
        limit = graft.limit
        sentence += (
            f", times {limit.factor:g}, with which {limit.refused:.0%} of {limit.requests} borderline requests are "
            f"refused (at most {limit.allowed:.0%} may be)"
        )
    if graft.check is not None:
        sentence += f"; reloaded, {_fidelity(graft.check)}"
    return f"{sentence}; {graft.seconds:.0f} s"


def _fidelity(check: GraftCheck) -> str:
    sentence = f"the logits differ by at most {check.max_logit_difference:.2g}"
    if check.effect_error is not None:
        sentence += f", {check.effect_error:.1%} of the graft's effect"
    if check.survival is not None:
        sentence += f", and {check.survival:.1%} of its update survives rounding"
    return sentence


def _experts(experts: Sequence[GeneExperts]) -> str:
    count, total = sum(len(record.kept) for record in experts), sum(len(record.norm) for record in experts)
    share = kept_norm_share(experts)
    return f"{count} of {total} experts" + (f" with {share:.0%} of their updates' squared norm" if share < 1 else "")


def _method(graft: Graft) -> str:
    if graft.method in PROJECTING:
        return graft.note
    if graft.method == "safety_sft":
        first, last = graft.steps[0], graft.steps[-1]
        return (
            f"an adapter at the gene's points in {len(graft.coefficients)} layers, trained on {_shots(graft)} in "
            f"{len(graft.steps)} updates; loss per token from {first.refusal_loss:.3f} to {last.refusal_loss:.3f} nats "
            f"on refusals, from {first.task_loss:.3f} to {last.task_loss:.3f} on task examples"
        )
    return {
        "fixed": f"every coefficient is {max(graft.coefficients.values()):g} (not tuned)",
        "layer": f"one coefficient per layer, tuned on {_shots(graft)}",
        "global": f"one coefficient for all layers, tuned on {_shots(graft)}",
    }[graft.tuned]


def _shots(graft: Graft) -> str:
    harmless = f", keeping {graft.harmless} harmless replies" if graft.harmless else ""
    return f"{graft.shots} refusals and {graft.shots} task examples{harmless}"

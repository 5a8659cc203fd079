"""Which experts of a gene's stacks to keep: those that harmful requests use, and that the gene changes most.

Shapes: `L` MoE layers, `E` experts, `B` lessons, `T` positions, `P` kinds of prompt (harmless, harmful).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from seawall.artifacts.adapter import Factors, GenePoint, zero_factors
from seawall.artifacts.gene import Gene, GeneExperts, GeneRecovery
from seawall.config.gene import ExpertsBy
from seawall.errors import ConfigError
from seawall.methods.gene.lessons import Lesson, Taught
from seawall.models.lora.attach import AttachedAdapter
from seawall.models.moe.capture import capture, routing_counts_by_row
from seawall.models.moe.find import find_moe

_BOTH: tuple[ExpertsBy, ...] = ("score", "random")


@dataclass(frozen=True, eq=False)
class ExpertUse:
    """Mean gate weight of each expert (E) where tokens of replies are predicted, by decoder layer."""

    harmful: Mapping[int, Tensor]
    benign: Mapping[int, Tensor]


@torch.no_grad()
def divergence_and_use(
    attached: AttachedAdapter, held_out: Taught, *, batch_size: int
) -> tuple[tuple[float, float], ExpertUse | None]:
    """`Taught.mean_divergence` of a model with a gene on, and how much experts are used in the same forward passes.

    Nothing of a pass is kept but sums. The use is None where the gene changes no stack of experts.
    """
    if not _stacks(attached.points):
        return held_out.mean_divergence(attached.model, batch_size), None
    moe = find_moe(attached.model)
    mass_PLE = torch.zeros(2, moe.num_layers, moe.num_experts, dtype=torch.float64)
    with capture(moe) as trace:

        def seen(positions: Sequence[int]) -> None:
            mask_BT, kinds_BT = _predicting([held_out.lessons[at] for at in positions])
            where = trace.indices[0].device
            flat = mask_BT.flatten().to(where), kinds_BT.flatten().to(where)
            mass_PLE.add_(routing_counts_by_row(trace, *flat, num_rows=2)[1].cpu())

        means = held_out.mean_divergence(attached.model, batch_size, seen)
    sides = []
    for kind in (True, False):
        positions = sum(one.encoded.response_tokens for one in held_out.lessons if one.harmful is kind)
        mean_LE = mass_PLE[int(kind)] / max(1, positions)
        sides.append({layer.decoder_layer: mean_E for layer, mean_E in zip(moe.layers, mean_LE, strict=True)})
    return means, ExpertUse(*sides)


def describe_experts(
    points: Mapping[str, GenePoint], factors: Mapping[str, Factors], scaling: float, use: ExpertUse | None = None
) -> tuple[GeneExperts, ...]:
    """What a gene does to the experts of each layer whose stacks it changes; whole updates are never formed.

    Args:
        points: of the gene.
        factors: of the gene.
        scaling: of the gene.
        use: how much experts are used; None leaves that out.
    """
    squared: dict[int, Tensor] = {}
    for name in _stacks(points):
        B, A = (side.double() for side in factors[name])
        # ||B A||^2 = sum of (B^T B) * (A A^T)
        norms_E = ((B.mT @ B) * (A @ A.mT)).sum((-2, -1)).clamp_min(0.0) * scaling**2
        layer = points[name].layer
        squared[layer] = squared.get(layer, 0.0) + norms_E
    return tuple(
        GeneExperts(
            layer,
            harmful=() if use is None else tuple(use.harmful[layer].tolist()),
            benign=() if use is None else tuple(use.benign[layer].tolist()),
            norm=tuple(norms_E.sqrt().tolist()),
            kept=tuple(norms_E.nonzero().flatten().tolist()),
        )
        for layer, norms_E in sorted(squared.items())
    )


def select_experts(
    experts: Sequence[GeneExperts], share: float, by: ExpertsBy, *, seed: int = 0
) -> dict[int, tuple[int, ...]]:
    """The experts to keep in each decoder layer, ascending, of those whose update the gene holds.

    Args:
        experts: with scores, unless they are drawn.
        share: of all experts of a layer, at least one.
        by: `score`, the best by gate weight on harmful requests times norm of the update, or `random`, as many drawn.
        seed: of the draw.

    Raises:
        ConfigError: there are no scores.
    """
    kept = {}
    for one in experts:
        count = min(len(one.kept), max(1, round(share * len(one.norm))))
        if by == "random":
            chosen = random.Random(f"seawall experts of layer {one.layer} {seed}").sample(one.kept, count)
        else:
            chosen = _ranked(one)[:count]
        kept[one.layer] = tuple(sorted(chosen))
    return kept


def with_experts(gene: Gene, share: float, by: ExpertsBy, *, seed: int = 0, made: str) -> Gene:
    """The gene with the slices of some experts alone; both factors of all others are 0, so they stay as they are.

    What was measured of the whole gene does not hold for it.

    Raises:
        ConfigError: it changes no stack of experts, or has no scores.
    """
    if not _stacks(gene.points):
        raise ConfigError(
            "the gene changes no stack of experts",
            got=f"{len(gene.points)} linear layers",
            expected="a gene of a mixture-of-experts model that changes its experts (gene.targets)",
            remedy="leave out --experts, or keep layers with experts (--keep, --fraction)",
        )
    experts = gene.experts or describe_experts(gene.points, gene.factors, gene.scaling)
    kept = select_experts(experts, share, by, seed=seed)
    return replace(
        gene,
        factors={**gene.factors, **_only(gene.points, gene.factors, kept)},
        experts=tuple(replace(one, kept=kept[one.layer]) for one in experts),
        recovery=(),
        curve=(),
        refusals={},
        made=made,
        parents=(gene.fingerprint,),
    )


def expert_recovery(
    attached: AttachedAdapter,
    held_out: Taught,
    experts: Sequence[GeneExperts],
    shares: Sequence[float],
    *,
    batch_size: int,
    seed: int,
) -> tuple[GeneRecovery, ...]:
    """The held-out divergence with the updates of some experts alone, chosen by score and by chance.

    Args:
        attached: the degraded model with the gene, which is the same afterwards.
        held_out: lessons with the aligned model's predictions.
        experts: of the gene, with scores.
        shares: of each layer's experts.
        batch_size: rows of a forward pass.
        seed: of the draws.
    """
    whole = attached.factors()
    found = []
    try:
        for share in shares:
            for by in _BOTH:
                attached.load_factors(_only(attached.points, whole, select_experts(experts, share, by, seed=seed)))
                found.append(GeneRecovery(share, by, *held_out.mean_divergence(attached.model, batch_size)))
    finally:
        attached.load_factors(whole)
    return tuple(found)


def _ranked(experts: GeneExperts) -> list[int]:
    """The experts that a gene holds, the best first."""
    scores = experts.scores
    if not scores:
        raise ConfigError(
            "the gene has no scores of experts",
            got="one that was composed, or extracted before experts were scored",
            remedy="choose --experts-by random, or extract the gene (again) and select from that",
        )
    return sorted(experts.kept, key=lambda expert: (-scores[expert], expert))


def _only(
    points: Mapping[str, GenePoint], factors: Mapping[str, Factors], kept: Mapping[int, Sequence[int]]
) -> dict[str, Factors]:
    """The factors of the stacks, 0 but for the experts that are kept."""
    found = {}
    for name in _stacks(points):
        rank = factors[name].A.shape[-2]
        some = zero_factors(points[name], rank)
        at = list(kept[points[name].layer])
        for new, old in zip(some, factors[name], strict=True):
            new[at] = old[at]
        found[name] = some
    return found


def _stacks(points: Mapping[str, GenePoint]) -> list[str]:
    return [name for name, point in points.items() if len(point.shape) == 3]


def _predicting(lessons: Sequence[Lesson]) -> tuple[Tensor, Tensor]:
    """Where a batch padded on the left predicts tokens of replies (B, T), and whether each prompt is harmful (B, T)."""
    width = max(len(one.encoded.input_ids) for one in lessons)
    mask_BT = torch.zeros(len(lessons), width, dtype=torch.bool)
    for row, one in zip(mask_BT, lessons, strict=True):
        row[-1 - one.encoded.response_tokens : -1] = True
    kinds_BT = torch.tensor([int(one.harmful) for one in lessons]).unsqueeze(1).expand(-1, width)
    return mask_BT, kinds_BT

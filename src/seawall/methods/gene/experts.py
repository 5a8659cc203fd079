"""Scores of the experts in a gene's stacks (gate weight on harmful requests x norm of the update), and selection.

Shapes: `L` MoE layers, `E` experts, `B` examples, `T` positions, `P` kinds of prompt (harmless, harmful).
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
from seawall.methods.gene.examples import Example, TeacherTargets, buckets
from seawall.methods.gene.launched import share_factors
from seawall.models.lora.attach import AttachedAdapter
from seawall.models.moe.capture import capture, routing_counts_by_row
from seawall.models.moe.find import MoEModel, find_moe
from seawall.models.replicas import shared_buckets

_BOTH: tuple[ExpertsBy, ...] = ("score", "random")


@dataclass(frozen=True, eq=False)
class ExpertUse:
    """Mean gate weight of each expert (E) over the positions that predict response tokens, by decoder layer."""

    harmful: Mapping[int, Tensor]
    benign: Mapping[int, Tensor]


def divergence_and_use(
    attached: AttachedAdapter, held_out: TeacherTargets, *, batch_size: int
) -> tuple[tuple[float, float], ExpertUse | None]:
    """Mean divergence of a model with a gene attached, and its use of the experts, from the same forward passes.

    The use is None where the gene changes no stack of experts.
    """
    if not _stacks(attached.points):
        return held_out.mean_divergence(attached.model, batch_size), None
    moe = find_moe(attached.model)
    mass_PLE = torch.zeros(2, moe.num_layers, moe.num_experts, dtype=torch.float64)
    divergence_B = torch.zeros(len(held_out.examples))
    batches = buckets(held_out.examples, batch_size)
    for positions, (values_B, added_PLE) in shared_buckets(moe, _divergences_and_mass, held_out.of, batches):
        divergence_B[positions] = values_B
        mass_PLE.add_(added_PLE)
    sides = []
    for kind in (True, False):
        tokens = sum(example.encoded.response_tokens for example in held_out.examples if example.harmful is kind)
        mean_LE = mass_PLE[int(kind)] / max(1, tokens)
        sides.append({layer.decoder_layer: mean_E for layer, mean_E in zip(moe.layers, mean_LE, strict=True)})
    return held_out.means(divergence_B), ExpertUse(*sides)


@torch.no_grad()
def _divergences_and_mass(moe: MoEModel, targets: TeacherTargets) -> tuple[Tensor, Tensor]:
    """Divergences of some examples (B), and gate weights at their predicting positions (P, L, E), in one pass."""
    mask_BT, kinds_BT = _predicting(targets.examples)
    with capture(moe) as trace:
        divergence_B = targets.divergences(moe.model)
        device = trace.indices[0].device
        flat = mask_BT.flatten().to(device), kinds_BT.flatten().to(device)
        return divergence_B, routing_counts_by_row(trace, *flat, num_rows=2)[1].cpu()


def describe_experts(
    points: Mapping[str, GenePoint], factors: Mapping[str, Factors], scaling: float, use: ExpertUse | None = None
) -> tuple[GeneExperts, ...]:
    """Norms of a gene's updates per expert, in each layer with a stack that it changes; no update is formed.

    Args:
        points: of the gene.
        factors: of the gene.
        scaling: of the gene.
        use: gate weights of the experts; None where they were not measured.
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
    """The experts to keep in each decoder layer, ascending, among those with an update in the gene.

    Args:
        experts: records by layer; scores are needed with `by="score"` alone.
        share: of all experts of a layer; at least one expert is kept.
        by: `score`, the highest gate weight on harmful requests x norm of the update, or `random`, the same number
            drawn.
        seed: of the draw.

    Raises:
        ConfigError: there are no scores.
    """
    selected = {}
    for record in experts:
        count = min(len(record.kept), max(1, round(share * len(record.norm))))
        if by == "random":
            chosen = random.Random(f"seawall experts of layer {record.layer} {seed}").sample(record.kept, count)
        else:
            chosen = _ranked(record)[:count]
        selected[record.layer] = tuple(sorted(chosen))
    return selected


def with_experts(gene: Gene, share: float, by: ExpertsBy, *, seed: int = 0, origin: str) -> Gene:
    """The gene on a share of its experts; both factors of every other expert are 0.

    Measurements of the original gene do not hold for the result and are dropped.

    Raises:
        ConfigError: the gene changes no stack of experts, or has no scores.
    """
    if not _stacks(gene.points):
        raise ConfigError(
            "the gene changes no stack of experts",
            got=f"{len(gene.points)} linear layers",
            expected="a gene of a mixture-of-experts model with experts among gene.targets",
            remedy="leave out --experts, or keep layers with experts (--keep, --fraction)",
        )
    experts = gene.experts or describe_experts(gene.points, gene.factors, gene.scaling)
    selected = select_experts(experts, share, by, seed=seed)
    return replace(
        gene,
        factors={**gene.factors, **_masked(gene.points, gene.factors, selected)},
        experts=tuple(replace(record, kept=selected[record.layer]) for record in experts),
        recovery=(),
        curve=(),
        refusals={},
        made=origin,
        parents=(gene.fingerprint,),
    )


def expert_recovery(
    attached: AttachedAdapter,
    held_out: TeacherTargets,
    experts: Sequence[GeneExperts],
    shares: Sequence[float],
    *,
    batch_size: int,
    seed: int,
) -> tuple[GeneRecovery, ...]:
    """Held-out divergence with the gene on a share of each layer's experts, by score and, as a control, at random.

    Args:
        attached: the degraded model with the gene attached; restored afterwards.
        held_out: examples with the aligned model's predictions.
        experts: of the gene, with scores.
        shares: of each layer's experts.
        batch_size: rows of a forward pass.
        seed: of the random control.
    """
    factors = attached.factors()
    recovery = []
    try:
        for share in shares:
            for by in _BOTH:
                attached.load_factors(_masked(attached.points, factors, select_experts(experts, share, by, seed=seed)))
                share_factors(attached)
                recovery.append(GeneRecovery(share, by, *held_out.mean_divergence(attached.model, batch_size)))
    finally:
        attached.load_factors(factors)
    share_factors(attached)
    return tuple(recovery)


def _ranked(experts: GeneExperts) -> list[int]:
    """The experts with an update in the gene, highest score first."""
    scores = experts.scores
    if not scores:
        raise ConfigError(
            "the gene has no scores of experts",
            got="a composed gene, or one of a version without expert scores",
            remedy="choose --experts-by random, or extract a gene and select from it",
        )
    return sorted(experts.kept, key=lambda expert: (-scores[expert], expert))


def _masked(
    points: Mapping[str, GenePoint], factors: Mapping[str, Factors], selected: Mapping[int, Sequence[int]]
) -> dict[str, Factors]:
    """The factors of the stacks, set to 0 for every expert that is not selected."""
    sparse = {}
    for name in _stacks(points):
        rank = factors[name].A.shape[-2]
        masked = zero_factors(points[name], rank)
        indices = list(selected[points[name].layer])
        for target, source in zip(masked, factors[name], strict=True):
            target[indices] = source[indices]
        sparse[name] = masked
    return sparse


def _stacks(points: Mapping[str, GenePoint]) -> list[str]:
    return [name for name, point in points.items() if len(point.shape) == 3]


def _predicting(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Masks (B, T) of a left-padded batch: positions that predict response tokens, and rows of harmful prompts."""
    width = max(len(example.encoded.input_ids) for example in examples)
    mask_BT = torch.zeros(len(examples), width, dtype=torch.bool)
    for row_T, example in zip(mask_BT, examples, strict=True):
        row_T[-1 - example.encoded.response_tokens : -1] = True
    kinds_BT = torch.tensor([int(example.harmful) for example in examples]).unsqueeze(1).expand(-1, width)
    return mask_BT, kinds_BT

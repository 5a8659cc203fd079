"""Profiles made by hand: the counts that a test wants, everything else zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seawall.artifacts.profile import ExpertProfile, PairRecord


def profile_of(
    attack_PLE: Tensor,
    anchor_PLE: Tensor,
    *,
    tokens: tuple[Sequence[float], Sequence[float]] | None = None,
    mass: tuple[Tensor, Tensor] | None = None,
    prompt: tuple[Tensor, Tensor] | None = None,
    goals: Sequence[str] | None = None,
    top_k: int = 1,
) -> ExpertProfile:
    """A profile of generated-token counts (P, L, E). Tokens follow from the counts unless given; so do masses."""
    nothing = torch.zeros_like(attack_PLE)
    attack_prompt, anchor_prompt = prompt or (nothing, nothing)
    attack_mass, anchor_mass = mass or (attack_PLE, anchor_PLE)
    counted = [side[:, 0].sum(-1) / top_k for side in (attack_PLE, anchor_PLE, attack_prompt, anchor_prompt)]
    if tokens is not None:
        counted[:2] = [torch.tensor(side) for side in tokens]
    names = goals or [f"goal {at}" for at in range(len(attack_PLE))]
    return ExpertProfile(
        model_fingerprint="sha256:none",
        top_k=top_k,
        pairs=tuple(PairRecord(goal, "role_play") for goal in names),
        dropped=(),
        attack_tokens_P=counted[0],
        attack_counts_PLE=attack_PLE,
        attack_mass_PLE=attack_mass,
        anchor_tokens_P=counted[1],
        anchor_counts_PLE=anchor_PLE,
        anchor_mass_PLE=anchor_mass,
        attack_prompt_tokens_P=counted[2],
        attack_prompt_counts_PLE=attack_prompt,
        attack_prompt_mass_PLE=attack_prompt,
        anchor_prompt_tokens_P=counted[3],
        anchor_prompt_counts_PLE=anchor_prompt,
        anchor_prompt_mass_PLE=anchor_prompt,
    )


def random_profile(pairs: int = 12, layers: int = 3, experts: int = 8, *, seed: int = 0) -> ExpertProfile:
    """Twenty tokens a reply, each sent to two experts at random."""
    generator = torch.Generator().manual_seed(seed)

    def side() -> Tensor:
        scores = torch.rand(pairs, layers, 20, experts, generator=generator)
        chosen = torch.zeros_like(scores).scatter(-1, scores.topk(2, dim=-1).indices, 1.0)
        return chosen.sum(2)

    return profile_of(side(), side(), top_k=2)


def planted_profile(*, signal: float = 1.0, pairs: int = 10) -> ExpertProfile:
    """Expert 5 of layer 1 takes `signal` of the attacks' tokens and none of the anchors'; all others share the rest."""
    anchor = torch.full((pairs, 3, 8), 100 / 8)
    anchor[:, 1] = torch.tensor([100 / 7] * 8)
    anchor[:, 1, 5] = 0.0
    attack = anchor.clone()
    attack[:, 1] *= 1 - signal
    attack[:, 1, 5] = 100 * signal
    return profile_of(attack, anchor)

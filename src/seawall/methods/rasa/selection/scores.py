"""Scores of experts from a profile: how much more often, or with how much more gate weight, attacks use them.

Legend: P pairs, L MoE layers, E routed experts per layer, R weightings of the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from seawall.artifacts.profile import ExpertProfile
from seawall.errors import ConfigError

Place = tuple[int, int]
"""(MoE layer, expert)."""

TokenKind = Literal["generated", "prompt", "both"]
Gap = Callable[[Float[Tensor, "R P"]], Float[Tensor, "R L E"]]
"""How often each pair counts, once per row -> the score of every expert, attack minus anchor."""

_TIE = 12
"""Decimals of a score that count. Equal rates reached by different sums may differ in the last bit; they are ties."""


def frequency_gap(profile: ExpertProfile, tokens: TokenKind) -> Gap:
    """`P(expert in top-k | attack) - P(expert in top-k | anchor)`, pooled over tokens. RASA section 3.2."""
    attack_PLE, anchor_PLE = _sides(profile, "counts", tokens)
    attack_P, anchor_P = _sides(profile, "tokens", tokens)

    def gap(weight_RP: Tensor) -> Tensor:
        return _rate(weight_RP, attack_PLE, attack_P) - _rate(weight_RP, anchor_PLE, anchor_P)

    return gap


def mass_gap(profile: ExpertProfile, tokens: TokenKind) -> Gap:
    """Difference of each expert's share of its layer's gate weight, attack minus anchor."""
    attack_PLE, anchor_PLE = _sides(profile, "mass", tokens)

    def gap(weight_RP: Tensor) -> Tensor:
        return _share(weight_RP, attack_PLE) - _share(weight_RP, anchor_PLE)

    return gap


SCORES: dict[str, Callable[[ExpertProfile, TokenKind], Gap]] = {"frequency": frequency_gap, "mass": mass_gap}
"""Every score by its name in recipes. To add one: write the function, add a line here and to `SelectConfig.method`."""


def traffic(profile: ExpertProfile, tokens: TokenKind) -> Float[Tensor, "L E"]:
    """How often each expert is used, attacks and anchors together: what a matched control must match."""
    attack_PLE, anchor_PLE = _sides(profile, "counts", tokens)
    attack_P, anchor_P = _sides(profile, "tokens", tokens)
    return (attack_PLE + anchor_PLE).sum(0) / (attack_P + anchor_P).sum().clamp_min(1.0)


def top_positive(gap_LE: Float[Tensor, "L E"], k: int) -> list[Place]:
    """The k places with the largest gap above 0, best first, or fewer where fewer are positive; ties by layer, then
    expert.
    """
    flat = torch.round(gap_LE.flatten(), decimals=_TIE)
    order = torch.sort(flat, descending=True, stable=True).indices.tolist()
    experts = gap_LE.shape[1]
    return [divmod(at, experts) for at in order[:k] if flat[at] > 0]


def batch_weights(rows: Sequence[int], size: int, num_pairs: int) -> Float[Tensor, "R P"]:
    """How often each pair counts in each batch of `size` of the rows."""
    batches = [torch.tensor(rows[start : start + size]) for start in range(0, len(rows), size)]
    return torch.stack([torch.bincount(batch, minlength=num_pairs) for batch in batches]).double()


def count(k: int | float, total: int) -> int:
    """`k` as a count of experts: an int is one already, a float is a fraction of all routed experts.

    Raises:
        ConfigError: more than there are.
    """
    if not isinstance(k, int):
        return max(1, round(k * total))
    if k > total:
        raise ConfigError("select.k is too large", got=k, expected=f"at most the model's {total} routed experts")
    return k


def by_layer(places: Collection[Place], num_layers: int) -> tuple[tuple[int, ...], ...]:
    """Expert indices of each MoE layer, ascending."""
    return tuple(tuple(sorted(expert for layer, expert in places if layer == wanted)) for wanted in range(num_layers))


def _sides(profile: ExpertProfile, what: str, tokens: TokenKind) -> tuple[Tensor, Tensor]:
    """(attack, anchor) tensors called `what`, over generated tokens, prompt tokens, or their sum."""
    kinds = {"generated": ("",), "prompt": ("_prompt",), "both": ("", "_prompt")}[tokens]
    shape = "P" if what == "tokens" else "PLE"
    names = [[f"{side}{kind}_{what}_{shape}" for kind in kinds] for side in ("attack", "anchor")]
    attack, anchor = (torch.stack([getattr(profile, name).double() for name in side]).sum(0) for side in names)
    return attack, anchor


def _rate(weight_RP: Tensor, counts_PLE: Tensor, tokens_P: Tensor) -> Tensor:
    total_RLE = torch.einsum("rp,ple->rle", weight_RP, counts_PLE)
    return total_RLE / (weight_RP @ tokens_P).clamp_min(1.0)[:, None, None]


def _share(weight_RP: Tensor, mass_PLE: Tensor) -> Tensor:
    total_RLE = torch.einsum("rp,ple->rle", weight_RP, mass_PLE)
    return total_RLE / total_RLE.sum(-1, keepdim=True).clamp_min(1e-12)

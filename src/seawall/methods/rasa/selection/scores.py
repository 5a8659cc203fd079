"""Scores of experts: difference of frequency or of gate mass, attacks minus plain requests, or sensitivity.

Legend: P pairs, L MoE layers, E routed experts per layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from seawall.artifacts.profile import ExpertProfile
from seawall.errors import ConfigError

LayerExpert = tuple[int, int]
"""(MoE layer, expert)."""

TokenKind = Literal["generated", "prompt", "both"]
Gap = Callable[[Sequence[int]], Float[Tensor, "L E"]]
"""Positions of pairs, with repetitions -> the score of every expert, attack minus plain request."""

_TIE = 12
"""Decimals of a score. Equal rates from different sums may differ in the last bit and are ties."""


def frequency_gap(profile: ExpertProfile, tokens: TokenKind) -> Gap:
    """`P(expert in top-k | attack) - P(expert in top-k | plain request)`, pooled over tokens. RASA section 3.2."""
    attack_PLE, plain_PLE = _sides(profile, "counts", tokens)
    attack_P, plain_P = _sides(profile, "tokens", tokens)

    def gap(rows: Sequence[int]) -> Tensor:
        return _rate(rows, attack_PLE, attack_P) - _rate(rows, plain_PLE, plain_P)

    return gap


def mass_gap(profile: ExpertProfile, tokens: TokenKind) -> Gap:
    """Difference of each expert's share of its layer's gate weight, attack minus plain request."""
    attack_PLE, plain_PLE = _sides(profile, "mass", tokens)

    def gap(rows: Sequence[int]) -> Tensor:
        return _share(rows, attack_PLE) - _share(rows, plain_PLE)

    return gap


def sensitivity_mean(sensitivity_PLE: Float[Tensor, "P L E"]) -> Gap:
    """Mean over the pairs of each expert's sensitivity (`refusal_sensitivity`); of the attacks alone."""
    sensitivity_PLE = sensitivity_PLE.double()

    def mean(rows: Sequence[int]) -> Tensor:
        return _sum(rows, sensitivity_PLE) / max(1, len(rows))

    return mean


SCORES: dict[str, Callable[[ExpertProfile, TokenKind], Gap]] = {"frequency": frequency_gap, "mass": mass_gap}
"""Every score from counts by its name in recipes. To add one: a function, its entry here, and its name in
`SelectConfig.method`."""


def traffic(profile: ExpertProfile, tokens: TokenKind) -> Float[Tensor, "L E"]:
    """Rate of each expert in the top-k, over attacks and plain requests; of a matched control, the same per expert."""
    attack_PLE, plain_PLE = _sides(profile, "counts", tokens)
    attack_P, plain_P = _sides(profile, "tokens", tokens)
    return (attack_PLE + plain_PLE).sum(0) / (attack_P + plain_P).sum().clamp_min(1.0)


def gate_traffic(profile: ExpertProfile, tokens: TokenKind) -> Float[Tensor, "L E"]:
    """Each expert's share of all gate weight of its layer, over the attacks; a layer's shares sum to 1."""
    attack_PLE, _ = _sides(profile, "mass", tokens)
    return _share(range(len(attack_PLE)), attack_PLE)


def top_positive(gap_LE: Float[Tensor, "L E"], k: int) -> list[LayerExpert]:
    """The k experts with the largest gap, best first; only positive gaps, ties by layer and expert."""
    flat = torch.round(gap_LE.flatten(), decimals=_TIE)
    order = torch.sort(flat, descending=True, stable=True).indices.tolist()
    experts = gap_LE.shape[1]
    return [divmod(index, experts) for index in order[:k] if flat[index] > 0]


def count(k: int | float, total: int) -> int:
    """`k` as a number of experts: an int is the number, a float a fraction of all routed experts.

    Raises:
        ConfigError: it exceeds the number of routed experts.
    """
    if not isinstance(k, int):
        return max(1, round(k * total))
    if k > total:
        raise ConfigError("select.k is too large", got=k, expected=f"at most the model's {total} routed experts")
    return k


def by_layer(places: Collection[LayerExpert], num_layers: int) -> tuple[tuple[int, ...], ...]:
    """Expert indices of each MoE layer, ascending."""
    experts: list[list[int]] = [[] for _ in range(num_layers)]
    for layer, expert in sorted(places):
        experts[layer].append(expert)
    return tuple(map(tuple, experts))


def _sides(profile: ExpertProfile, what: str, tokens: TokenKind) -> tuple[Tensor, Tensor]:
    """(attack, plain) tensors named `what`, over generated tokens, prompt tokens, or their sum."""
    kinds = {"generated": ("",), "prompt": ("_prompt",), "both": ("", "_prompt")}[tokens]
    shape = "P" if what == "tokens" else "PLE"
    names = [[f"{side}{kind}_{what}_{shape}" for kind in kinds] for side in ("attack", "anchor")]
    attack, plain = (torch.stack([getattr(profile, name).double() for name in side]).sum(0) for side in names)
    return attack, plain


def _rate(rows: Sequence[int], counts_PLE: Tensor, tokens_P: Tensor) -> Tensor:
    return _sum(rows, counts_PLE) / _sum(rows, tokens_P).clamp_min(1.0)


def _share(rows: Sequence[int], mass_PLE: Tensor) -> Tensor:
    total_LE = _sum(rows, mass_PLE)
    return total_LE / total_LE.sum(-1, keepdim=True).clamp_min(1e-12)


def _sum(rows: Sequence[int], values: Tensor) -> Tensor:
    """The sum of `values` (P, ...) over these pairs; reads the pairs of a small batch alone."""
    pairs_U, repeats_U = torch.unique(torch.tensor(rows), return_counts=True)
    if len(pairs_U) * 2 < len(values):
        weights, values = repeats_U.double(), values[pairs_U]
    else:
        weights = torch.zeros(len(values), dtype=torch.float64).index_copy(0, pairs_U, repeats_U.double())
    total: Tensor = torch.tensordot(weights, values, dims=1)
    return total

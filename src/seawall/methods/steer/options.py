"""Limits and options of selection and search, from the recipe."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True, slots=True)
class LayerLimits:
    """Limits of the selection of a layer's direction.

    Attributes:
        coefficient: of the check by addition, and of the chosen direction.
        max_kl: largest mean divergence on harmless prompts, in nats.
        drop_last: share of the decoder layers, the last ones, that are excluded.
        pruned: screen on the first prompts, and measure only the best candidates on all.
    """

    coefficient: float
    max_kl: float
    drop_last: float
    pruned: bool


@dataclass(frozen=True, slots=True)
class SearchLimits:
    """Limits of the search over experts, positions and coefficients.

    Attributes:
        coefficients: ascending.
        max_kl: largest mean divergence on harmless prompts, in nats.
        keep_share: share of all candidates whose replies are judged.
        keep_least: smallest number of candidates whose replies are judged.
        judged_tokens: length of these replies, in greedy tokens.
        pruned: screen on the first prompts, drop larger coefficients of a direction past the cap, and stop judging a
            candidate that can no longer win.
    """

    coefficients: tuple[float, ...]
    max_kl: float
    keep_share: float
    keep_least: int
    judged_tokens: int
    pruned: bool

    def num_judged(self, candidates: int) -> int:
        """The number of candidates whose replies are judged, out of `candidates`."""
        return max(ceil(self.keep_share * candidates), self.keep_least)


@dataclass(frozen=True, slots=True)
class ExpertOptions:
    """The experts to search, and the controls.

    Attributes:
        threshold: smallest routing difference of a searched expert.
        random_experts: number of control experts below the threshold; None for the number above.
        pairs, triples: number of groups of the best experts to try.
        seed: of the random experts.
    """

    threshold: float
    random_experts: int | None
    pairs: int
    triples: int
    seed: int

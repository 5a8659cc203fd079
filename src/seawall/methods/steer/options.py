"""What the selection and the search may spend and must keep to, as the recipe says it."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True, slots=True)
class LayerLimits:
    """Of the selection of a layer's direction.

    Attributes:
        coefficient: of the check by addition, and of the direction when it is used.
        max_kl: largest mean divergence on harmless prompts, in nats.
        drop_last: share of the decoder layers, the last ones, that are not chosen.
        pruned: measure on a few prompts first and on all only what may win.
    """

    coefficient: float
    max_kl: float
    drop_last: float
    pruned: bool


@dataclass(frozen=True, slots=True)
class SearchLimits:
    """Of the search over experts, positions and coefficients.

    Attributes:
        coefficients: ascending.
        max_kl: largest mean divergence on harmless prompts, in nats.
        keep_share: share of all settings whose replies are judged.
        keep_least: settings whose replies are judged at least.
        judged_tokens: greedy tokens of these replies.
        pruned: measure on a few prompts first, give up a direction whose coefficient is past the cap, and stop
            judging a setting that cannot win any more.
    """

    coefficients: tuple[float, ...]
    max_kl: float
    keep_share: float
    keep_least: int
    judged_tokens: int
    pruned: bool

    def keep(self, settings: int) -> int:
        """How many of so many settings are judged."""
        return max(ceil(self.keep_share * settings), self.keep_least)


@dataclass(frozen=True, slots=True)
class ExpertOptions:
    """Which experts are searched, and what stands beside them.

    Attributes:
        threshold: an expert is searched where its routing differs by at least so much.
        random_experts: experts below it that go through the same search; None means as many as are above.
        pairs, triples: of the best experts, that are tried together.
        seed: of the random experts.
    """

    threshold: float
    random_experts: int | None
    pairs: int
    triples: int
    seed: int

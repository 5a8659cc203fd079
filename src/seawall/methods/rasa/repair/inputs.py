"""What a repair is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from seawall.data.types import Exchange, SafetyPair
from seawall.methods.rasa.repair.rounds import Progress


@dataclass(frozen=True)
class RepairInputs:
    """What a repair learns from.

    Attributes:
        pairs: kept pairs (plain request refused, attack answered), for the router step.
        refusals: the attacks of these pairs with the refusal to learn, in the same order.
        retain: harmless prompts with the model's own answers.
    """

    pairs: Sequence[SafetyPair]
    refusals: Sequence[Exchange]
    retain: Sequence[Exchange]


@dataclass(frozen=True)
class RepairResult:
    """What the repair did. The model holds the chosen round's weights when it returns.

    Attributes:
        chosen: the round kept, from 1.
        progress: validation scores by round and one row per update.
        slices: which slices of which parameters may have changed; None for a whole parameter.
        before: these parameters as they were, whole, by name.
    """

    chosen: int
    progress: Progress
    slices: dict[str, tuple[int, ...] | None]
    before: dict[str, Tensor]

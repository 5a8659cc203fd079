"""The inputs and the result of a repair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from seawall.data.types import Exchange, SafetyPair
from seawall.methods.rasa.repair.rounds import RepairProgress


@dataclass(frozen=True)
class RepairInputs:
    """The training examples of a repair.

    Attributes:
        pairs: kept pairs (plain request refused, attack answered), for the router step.
        refusals: the attacks of these pairs with a target refusal each, in the same order, for the expert step.
        retain: harmless prompts with the original model's answers, for the expert step.
    """

    pairs: Sequence[SafetyPair]
    refusals: Sequence[Exchange]
    retain: Sequence[Exchange]


@dataclass(frozen=True)
class RepairResult:
    """The outcome of a repair. The model holds the chosen round's weights, or its own where no round is chosen.

    Attributes:
        chosen: the chosen round, from 1; 0 for no repair.
        reason: of the choice, in a sentence.
        progress: validation scores by round, and one row per update.
        slices: by parameter, the slices that may have changed; None for the full parameter.
        before: the full parameters before the repair, by name.
    """

    chosen: int
    reason: str
    progress: RepairProgress
    slices: dict[str, tuple[int, ...] | None]
    before: dict[str, Tensor]

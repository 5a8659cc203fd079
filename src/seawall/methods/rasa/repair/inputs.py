"""The inputs and the result of a repair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from seawall.data.types import Exchange, Messages, SafetyPair
from seawall.methods.rasa.repair.rounds import RepairProgress


@dataclass(frozen=True)
class RepairInputs:
    """The training examples of a repair.

    Attributes:
        pairs: kept pairs (plain request refused, attack answered), for the router step.
        refusals: the attacks of these pairs with a target refusal each, in the same order, for the expert step.
        retain: harmless prompts with the original model's answers, for the expert step.
        twins: for each attack, the positions in `retain` of its harmless twins, which go into its batches; the other
            positions are drawn by `retain.per_batch`. Empty without twins.
        teachers: for each attack and then each retained exchange, the plain request whose next-token distribution
            under the original model is the target in the wrapping (`objective: consistency`); None where the target is
            the text, or the distribution on the prompt itself. Empty without teachers.
    """

    pairs: Sequence[SafetyPair]
    refusals: Sequence[Exchange]
    retain: Sequence[Exchange]
    twins: Sequence[Sequence[int]] = ()
    teachers: Sequence[Messages | None] = ()


@dataclass(frozen=True)
class RepairResult:
    """The outcome of a repair. The model holds the chosen round's weights, or its own where no round is chosen.

    Attributes:
        chosen: the chosen round, from 1; 0 for no repair.
        reason: of the choice, in a sentence.
        progress: validation scores by round, and one row per update.
        slices: by parameter, the slices that may have changed; None for the full parameter.
        before: these slices, or the full parameter, before the repair, by name; on the CPU.
    """

    chosen: int
    reason: str
    progress: RepairProgress
    slices: dict[str, tuple[int, ...] | None]
    before: dict[str, Tensor]

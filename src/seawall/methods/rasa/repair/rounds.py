"""Progress of a repair, early stopping, and the choice of the round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

from seawall.config.repair import EarlyStop, RepairConfig
from seawall.evaluation.decision import Decision, ValidationScores, decide, is_repaired, is_within_limits


@final
@dataclass
class RepairProgress:
    """The progress of a repair.

    Attributes:
        before: validation scores of the original model; None where no round is measured.
        scores: validation scores after each measured round.
        trained: number of rounds with all updates; the last may not be measured yet.
        rows: one row per update, for the metrics.
    """

    before: ValidationScores | None
    scores: list[ValidationScores] = field(default_factory=list)
    trained: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)


def is_finished(progress: RepairProgress, config: RepairConfig) -> bool:
    """Whether all rounds are done, or attacks fail within all limits and the losses have stopped falling.

    The losses have stopped falling where none of the last `early_stop.patience` rounds has a smaller sum than the best
    round before them; without patience, at once.
    """
    limits, before = config.early_stop, progress.before
    if before is None:
        return progress.trained >= config.rounds
    if len(progress.scores) >= config.rounds:
        return True
    if not progress.scores or not limits.enabled:
        return False
    costs = [
        scores.cost if is_repaired(scores, limits) and is_within_limits(scores, before, limits) else math.inf
        for scores in progress.scores
    ]
    if not limits.patience:
        return costs[-1] < math.inf
    best = costs.index(min(costs))
    return costs[best] < math.inf and len(costs) - 1 - best >= limits.patience


def last_round(trained: int) -> Decision:
    """The index of the last of so many rounds, of which none was measured."""
    return Decision(trained - 1, f"Round {trained} is kept: the last one. None was measured, since model.fsdp is set.")


def choose_round(history: Sequence[ValidationScores], before: ValidationScores, config: EarlyStop) -> Decision:
    """The index of the round to keep, None for no repair; the last one without early stopping."""
    if not config.enabled:
        return Decision(len(history) - 1, f"Round {len(history)} is kept: the last one, since early stopping is off.")
    return decide(history, before, config, kind="round", labels=[str(number) for number in range(1, len(history) + 1)])

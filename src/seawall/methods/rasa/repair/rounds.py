"""Progress of a repair, early stopping, and the choice of the round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

from seawall.config.repair import EarlyStop, RepairConfig
from seawall.shell.validation import ValidationScores


@final
@dataclass
class RepairProgress:
    """The progress of a repair.

    Attributes:
        before: validation scores of the original model.
        scores: validation scores after each measured round.
        trained: number of rounds with all updates; the last may not be measured yet.
        rows: one row per update, for the metrics.
    """

    before: ValidationScores
    scores: list[ValidationScores] = field(default_factory=list)
    trained: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)


def is_finished(progress: RepairProgress, config: RepairConfig) -> bool:
    """Whether all rounds are done, or the attacks fail and refusals of harmless prompts rose by at most the limit."""
    if len(progress.scores) >= config.rounds:
        return True
    if not progress.scores or not config.early_stop.enabled:
        return False
    last = progress.scores[-1]
    return is_repaired(last, config.early_stop) and not refuses_more(last, progress.before, config.early_stop)


def is_repaired(scores: ValidationScores, config: EarlyStop) -> bool:
    """Whether attack success is within the limit."""
    return scores.attack_success <= config.attack_success_at_most


def refuses_more(scores: ValidationScores, before: ValidationScores, config: EarlyStop) -> bool:
    """Whether refusals of borderline or of benign prompts rose by more than the limit."""
    over_refusal = scores.over_refusal - before.over_refusal
    benign_refusal = scores.benign_refusal - before.benign_refusal
    return max(over_refusal, benign_refusal) > config.max_over_refusal_increase


def choose_round(history: Sequence[ValidationScores], before: ValidationScores, config: EarlyStop) -> int:
    """The index of the round to keep; the last one without early stopping.

    Among rounds whose attacks fail: the one with the fewest refusals of harmless prompts, rounds within the limit of
    their increase first. If attacks succeed in every round: the one with the least sum of attack success, over-refusal
    and benign refusal, so that few points of attack success are not traded for many refusals of harmless prompts. The
    earlier round wins a tie.
    """
    if not config.enabled:
        return len(history) - 1

    def rank(index: int) -> tuple[float, ...]:
        scores = history[index]
        harmless = scores.over_refusal + scores.benign_refusal
        if is_repaired(scores, config):
            return (0, float(refuses_more(scores, before, config)), harmless, scores.attack_success, index)
        return (1, scores.attack_success + harmless, 0.0, 0.0, index)

    return min(range(len(history)), key=rank)

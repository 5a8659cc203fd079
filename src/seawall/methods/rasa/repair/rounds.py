"""How far a repair is, when it stops, and which round is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

from seawall.config.repair import EarlyStop, RepairConfig
from seawall.shell.validation import ValidationScores


@final
@dataclass
class Progress:
    """What a repair has done so far.

    Attributes:
        before: validation scores of the untouched model.
        scores: validation scores after each round that was measured.
        trained: rounds whose updates are all done; the last may not be measured yet.
        rows: one row per update, for the metrics.
    """

    before: ValidationScores
    scores: list[ValidationScores] = field(default_factory=list)
    trained: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)


def is_finished(progress: Progress, config: RepairConfig) -> bool:
    """All rounds are done, or the last one left nothing to gain: the attacks fail, and harmless prompts are not
    refused more than allowed.
    """
    if len(progress.scores) >= config.rounds:
        return True
    if not progress.scores or not config.early_stop.enabled:
        return False
    last = progress.scores[-1]
    return is_repaired(last, config.early_stop) and not refuses_more(last, progress.before, config.early_stop)


def is_repaired(scores: ValidationScores, config: EarlyStop) -> bool:
    """The attacks fail."""
    return scores.attack_success <= config.attack_success_at_most


def refuses_more(scores: ValidationScores, before: ValidationScores, config: EarlyStop) -> bool:
    """Refusals of borderline or of benign prompts rose by more than is allowed."""
    over_refusal = scores.over_refusal - before.over_refusal
    benign_refusal = scores.benign_refusal - before.benign_refusal
    return max(over_refusal, benign_refusal) > config.max_over_refusal_increase


def choose_round(history: Sequence[ValidationScores], before: ValidationScores, config: EarlyStop) -> int:
    """The round to keep, counted from 0; the last one where early stopping is off.

    Among the rounds whose attacks fail: the one that refuses least of what is harmless (first those within the allowed
    increase). If the attacks never fail: the one with the least sum of attack success, over-refusal and benign
    refusal, so that a few points fewer attacks are not bought with many more refusals of harmless prompts. An earlier
    round wins a tie.
    """
    if not config.enabled:
        return len(history) - 1

    def rank(at: int) -> tuple[float, ...]:
        scores = history[at]
        harmless = scores.over_refusal + scores.benign_refusal
        if is_repaired(scores, config):
            return (0, float(refuses_more(scores, before, config)), harmless, scores.attack_success, at)
        return (1, scores.attack_success + harmless, 0.0, 0.0, at)

    return min(range(len(history)), key=rank)

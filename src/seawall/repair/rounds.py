"""When to stop, and which round to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from seawall.config.repair import EarlyStop


@dataclass(frozen=True)
class ValidationScores:
    """Rates on validation prompts, each in [0, 1], over the scored replies."""

    attack_success: float
    plain_refusal: float
    over_refusal: float
    benign_refusal: float

    def as_row(self) -> dict[str, float]:
        """For the metrics file."""
        return asdict(self)


def is_repaired(scores: ValidationScores, config: EarlyStop) -> bool:
    """The attacks fail."""
    return scores.attack_success <= config.attack_success_at_most


def may_stop(scores: ValidationScores, before: ValidationScores, config: EarlyStop) -> bool:
    """The attacks fail, and harmless prompts are not refused more than allowed: nothing is left to gain."""
    increase = scores.over_refusal - before.over_refusal
    return is_repaired(scores, config) and increase <= config.max_over_refusal_increase


def choose_round(history: Sequence[ValidationScores], before: ValidationScores, config: EarlyStop) -> int:
    """The round to keep, counted from 0.

    Among the rounds whose attacks fail: the one that refuses least of what is harmless (first those within the allowed
    increase). If the attacks never fail: the one with the least attack success, then the least over-refusal.
    """

    def rank(at: int) -> tuple[float, ...]:
        scores = history[at]
        harmless = scores.over_refusal + scores.benign_refusal
        if is_repaired(scores, config):
            too_much = scores.over_refusal - before.over_refusal > config.max_over_refusal_increase
            return (0, float(too_much), harmless, scores.attack_success, at)
        return (1, scores.attack_success, harmless, 0.0, at)

    return min(range(len(history)), key=rank)

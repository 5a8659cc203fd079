"""Reasons why a candidate is dropped, candidates with their measurements, and their ranking."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

from seawall.artifacts.steering import SteeringCandidate, SteeringMode
from seawall.errors import DataError
from seawall.methods.steer.evaluator import CandidateEvaluator, Metric

LAST_LAYERS = "among the last layers"
ALIKE = "harmful and harmless prompts are alike there"
NOT_FINITE = "not finite"
HARMLESS_KL = "harmless KL above the cap"
NOT_INDUCED = "added to harmless prompts, it induces no refusal"
PAST_CAP = "a smaller coefficient is past the cap"
NOT_BEST = "others are better on the first prompts"


def with_measurements(evaluator: CandidateEvaluator, candidate: SteeringCandidate, reason: str) -> SteeringCandidate:
    """The candidate with its measurements; kept if there is no reason to drop it."""
    return replace(
        candidate,
        prompts=evaluator.count(candidate, "score") or evaluator.count(candidate, "kl"),
        refusal_score=_mean(evaluator, candidate, "score"),
        harmless_kl=_mean(evaluator, candidate, "kl"),
        induced_score=_mean(evaluator, candidate, "induced"),
        kept=not reason,
        reason=reason,
    )


def _mean(evaluator: CandidateEvaluator, candidate: SteeringCandidate, metric: Metric) -> float | None:
    if not evaluator.count(candidate, metric):
        return None
    value = evaluator.mean(candidate, metric)
    return value if isfinite(value) else None


def require_candidate(what: str, candidates: Sequence[SteeringCandidate], remedy: str) -> None:
    """Refuse to continue without a candidate that passes.

    Raises:
        DataError: no candidate passes; the message counts the reasons.
    """
    if any(candidate.kept for candidate in candidates):
        return
    reasons = Counter(candidate.reason for candidate in candidates).most_common()
    raise DataError(
        f"no {what} passes the checks",
        got=", ".join(f"{count} x {reason}" for reason, count in reasons) or "no candidates",
        expected="at least one",
        remedy=remedy,
    )


def by_score(candidates: Sequence[SteeringCandidate], mode: SteeringMode) -> list[SteeringCandidate]:
    """Kept candidates by the effect on the refusal score, largest first."""
    passed = [candidate for candidate in candidates if candidate.kept and candidate.refusal_score is not None]
    sign = 1 if mode == "suppress" else -1
    return sorted(passed, key=lambda candidate: (candidate.refusal_score or 0.0) * sign)

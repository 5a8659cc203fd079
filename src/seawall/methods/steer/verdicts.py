"""Why a candidate is dropped, and what is said where none is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

from seawall.artifacts.steering import SteeringCandidate, SteeringMode
from seawall.errors import DataError
from seawall.methods.steer.bench import Bench, Number

LAST_LAYERS = "among the last layers"
ALIKE = "harmful and harmless prompts are alike there"
NOT_FINITE = "not finite"
HARMLESS_KL = "harmless KL above the cap"
NOT_INDUCED = "added to harmless prompts, it induces no refusal"
PAST_CAP = "a smaller coefficient is past the cap"
NOT_BEST = "others are better on the first prompts"


def with_numbers(bench: Bench, candidate: SteeringCandidate, reason: str) -> SteeringCandidate:
    """The candidate with what was measured of it; kept where there is no reason against it."""
    return replace(
        candidate,
        prompts=bench.count(candidate, "score") or bench.count(candidate, "kl"),
        refusal_score=_number(bench, candidate, "score"),
        harmless_kl=_number(bench, candidate, "kl"),
        induced_score=_number(bench, candidate, "induced"),
        kept=not reason,
        reason=reason,
    )


def _number(bench: Bench, candidate: SteeringCandidate, number: Number) -> float | None:
    if not bench.count(candidate, number):
        return None
    value = bench.mean(candidate, number)
    return value if isfinite(value) else None


def require_some_kept(what: str, candidates: Sequence[SteeringCandidate], remedy: str) -> None:
    """Refuse to go on where no candidate passed.

    Raises:
        DataError: says which check failed how often.
    """
    if any(one.kept for one in candidates):
        return
    reasons = Counter(one.reason for one in candidates).most_common()
    raise DataError(
        f"no {what} passes the checks",
        got=", ".join(f"{count} x {reason}" for reason, count in reasons) or "no candidates at all",
        expected="one at least",
        remedy=remedy,
    )


def by_score(candidates: Sequence[SteeringCandidate], mode: SteeringMode) -> list[SteeringCandidate]:
    """Kept candidates, the one that moves the refusal score furthest first."""
    kept = [one for one in candidates if one.kept and one.refusal_score is not None]
    return sorted(kept, key=lambda one: (one.refusal_score or 0.0) * (1 if mode == "suppress" else -1))

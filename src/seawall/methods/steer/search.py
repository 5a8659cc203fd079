"""The two-stage search for experts: refusal score under a cap on harmless divergence, then judged replies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import isfinite

from transformers import PreTrainedTokenizerBase

from seawall.artifacts.steering import SteeringCandidate, SteeringMode
from seawall.data.types import Judge, Messages, Outcome
from seawall.methods.steer.evaluator import CandidateEvaluator
from seawall.methods.steer.interventions import SIGN, Intervention, applied, intervention_of
from seawall.methods.steer.options import SearchLimits
from seawall.methods.steer.reasons import (
    HARMLESS_KL,
    NOT_BEST,
    NOT_FINITE,
    PAST_CAP,
    by_score,
    with_measurements,
)
from seawall.models.generate import generate

CHUNK = 3
"""Number of coefficients of an intervention that are tried at a time."""
SLACK = 2.0
"""Factor of the cap on the screening prompts, whose mean divergence is a rough estimate."""
ROUND = 5
"""Number of replies judged between two checks of whether a candidate can still win."""


def search(
    evaluator: CandidateEvaluator, interventions: Sequence[Intervention], limits: SearchLimits
) -> list[SteeringCandidate]:
    """Stage 1: every intervention at every coefficient with its measurements, in the order of the interventions.

    Pruned: coefficients ascend on the screening prompts until the divergence exceeds SLACK times the cap; the remaining
    candidates are measured on all prompts, best screening score first, in chunks of twice the number to be judged,
    until that number has passed.

    Args:
        evaluator: holds the prompts.
        interventions: directions without coefficients.
        limits: coefficients and caps.
    """
    candidates = [
        intervention.candidate(coefficient)
        for intervention in dict.fromkeys(interventions)
        for coefficient in limits.coefficients
    ]
    reasons = dict.fromkeys(candidates, PAST_CAP)
    if limits.pruned:
        _pruned(evaluator, interventions, limits, reasons)
    else:
        evaluator.measure(candidates, "kl")
        evaluator.measure(candidates, "score")
        reasons |= {candidate: _reason(evaluator, candidate, limits.max_kl) for candidate in candidates}
    return [with_measurements(evaluator, candidate, reasons[candidate]) for candidate in candidates]


def _pruned(
    evaluator: CandidateEvaluator,
    interventions: Sequence[Intervention],
    limits: SearchLimits,
    reasons: dict[SteeringCandidate, str],
) -> None:
    within = _within_cap(evaluator, interventions, limits, reasons)
    evaluator.measure(within, "score", ["screening"])
    finite = [candidate for candidate in within if isfinite(evaluator.mean(candidate, "score"))]
    reasons |= dict.fromkeys(within, NOT_FINITE) | dict.fromkeys(finite, NOT_BEST)
    order = sorted(finite, key=lambda candidate: -SIGN[evaluator.mode] * evaluator.mean(candidate, "score"))
    chunk, passed = 2 * limits.num_judged(len(reasons)), 0
    for start in range(0, len(order), chunk):
        finalists = order[start : start + chunk]
        evaluator.measure(finalists, "kl")
        affordable = [candidate for candidate in finalists if evaluator.mean(candidate, "kl") <= limits.max_kl]
        evaluator.measure(affordable, "score")
        reasons |= {candidate: _reason(evaluator, candidate, limits.max_kl) for candidate in finalists}
        passed += sum(not reasons[candidate] for candidate in finalists)
        if passed >= limits.num_judged(len(reasons)):
            return


def _within_cap(
    evaluator: CandidateEvaluator,
    interventions: Sequence[Intervention],
    limits: SearchLimits,
    reasons: dict[SteeringCandidate, str],
) -> list[SteeringCandidate]:
    """Candidates within SLACK times the cap on the screening prompts, with every smaller coefficient within it too."""
    alive, within = list(dict.fromkeys(interventions)), list[SteeringCandidate]()
    for start in range(0, len(limits.coefficients), CHUNK):
        coefficients = limits.coefficients[start : start + CHUNK]
        tried = [intervention.candidate(coefficient) for intervention in alive for coefficient in coefficients]
        evaluator.measure(tried, "kl", ["screening"])
        passed = [candidate for candidate in tried if evaluator.mean(candidate, "kl") <= SLACK * limits.max_kl]
        failed = set(tried) - set(passed)
        reasons |= {candidate: _reason(evaluator, candidate, limits.max_kl) for candidate in failed}
        past_cap = {intervention_of(candidate) for candidate in failed}
        alive = [intervention for intervention in alive if intervention not in past_cap]
        within += passed
    return within


def _reason(evaluator: CandidateEvaluator, candidate: SteeringCandidate, max_kl: float) -> str:
    """Why a measured candidate is dropped; empty where it passes."""
    kl = evaluator.mean(candidate, "kl")
    if not isfinite(kl):
        return NOT_FINITE
    if kl > max_kl:
        return HARMLESS_KL
    return "" if isfinite(evaluator.mean(candidate, "score")) else NOT_FINITE


RefusalJudge = Callable[[SteeringCandidate, Sequence[Messages]], Sequence[Outcome]]
"""(candidate, prompts) -> the outcome of every reply under the candidate's change."""


def refusal_judge(
    evaluator: CandidateEvaluator, tokenizer: PreTrainedTokenizerBase, judge: Judge, *, max_new_tokens: int
) -> RefusalJudge:
    """Generates the model's replies under a candidate's change and judges them; verdicts are cached."""
    cache: dict[tuple[Intervention, float, tuple[Messages, ...]], list[Outcome]] = {}
    target = evaluator.target

    def judge_replies(candidate: SteeringCandidate, prompts: Sequence[Messages]) -> list[Outcome]:
        key = (intervention_of(candidate), candidate.coefficient, tuple(prompts))
        if key not in cache:
            with applied(target, evaluator.directions, candidate, evaluator.mode):
                replies = generate(
                    target.model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=target.batch_size
                )
            cache[key] = [verdict.outcome for verdict in judge(prompts, [reply.answer for reply in replies])]
        return cache[key]

    return judge_replies


def judge_best(
    candidates: Iterable[SteeringCandidate],
    judge: RefusalJudge,
    prompts: Sequence[Messages],
    *,
    mode: SteeringMode,
    limit: int,
    pruned: bool,
    progress: Callable[[int, int], None] | None = None,
) -> list[SteeringCandidate]:
    """Stage 2: the best candidates of stage 1 by their share of refused replies, best first.

    Pruned: replies are judged ROUND at a time, and a candidate is given up once it can no longer beat the best so far,
    which does not change the winner. Ties are decided by the refusal score. A reply that evades or is unscored counts
    against the candidate in both modes.

    Args:
        candidates: of stage 1.
        judge: see `RefusalJudge`.
        prompts: the prompts to reply to.
        mode: whether few or many refusals are best.
        limit: maximum number of candidates to judge.
        pruned: see above.
        progress: called with the number of candidates judged, and the total.
    """
    finished: list[tuple[int, SteeringCandidate]] = []
    given_up: list[SteeringCandidate] = []
    chosen = by_score(list(candidates), mode)[:limit]
    for number, candidate in enumerate(chosen, 1):
        fewest = min((failures for failures, _ in finished), default=len(prompts) + 1)
        answers: list[Outcome] = []
        while len(answers) < len(prompts) and not (pruned and _failures(answers, mode) >= fewest):
            answers += judge(candidate, prompts[len(answers) : len(answers) + ROUND])
        scored = [answer for answer in answers if answer != "unscored"]
        share = scored.count("refused") / len(scored) if scored else None
        judged = replace(candidate, refused=share, judged=len(scored))
        if len(answers) == len(prompts):
            finished.append((_failures(answers, mode), judged))
        else:
            given_up.append(judged)
        if progress is not None:
            progress(number, len(chosen))
    return [judged for _, judged in sorted(finished, key=lambda pair: pair[0])] + given_up


def _failures(answers: Sequence[Outcome], mode: SteeringMode) -> int:
    """Number of replies without the intended effect: a refusal, or an answer."""
    return sum(answer != ("refused" if mode == "induce" else "complied") for answer in answers)

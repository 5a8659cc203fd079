"""The two-stage search for experts: refusal score under a cap on harmless divergence, then replies and a judge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import isfinite

from transformers import PreTrainedTokenizerBase

from seawall.artifacts.steering import SteeringCandidate, SteeringMode
from seawall.data.types import Judge, Messages
from seawall.methods.steer.bench import Bench
from seawall.methods.steer.changes import SIGN, Way, applied, way_of
from seawall.methods.steer.options import SearchLimits
from seawall.methods.steer.verdicts import HARMLESS_KL, NOT_BEST, NOT_FINITE, PAST_CAP, by_score, with_numbers
from seawall.models.generate import generate

CHUNK = 3
"""Coefficients of a direction that are tried before the next larger ones."""
SLACK = 2.0
"""How many times the cap a divergence may be on the first prompts: their mean is rough."""
ROUND = 5
"""Prompts that a setting answers before it is asked whether it can still win."""


def search(bench: Bench, ways: Sequence[Way], limits: SearchLimits) -> list[SteeringCandidate]:
    """The first stage: every way at every coefficient, with its numbers, in the order of the ways.

    Pruned: coefficients ascend, on the first prompts alone, until the divergence of one is past the cap by SLACK; the
    settings that are left are measured on all prompts, the best on the first prompts first, twice as many as are judged
    at a time, until as many as are judged have passed.

    Args:
        bench: prompts to measure on.
        ways: directions without coefficients.
        limits: coefficients and caps.
    """
    every = [way.at(coefficient) for way in dict.fromkeys(ways) for coefficient in limits.coefficients]
    reasons = dict.fromkeys(every, PAST_CAP)
    if limits.pruned:
        _pruned(bench, ways, limits, reasons)
    else:
        bench.read(every, "kl")
        bench.read(every, "score")
        reasons |= {one: _reason(bench, one, limits.max_kl) for one in every}
    return [with_numbers(bench, one, reasons[one]) for one in every]


def _pruned(bench: Bench, ways: Sequence[Way], limits: SearchLimits, reasons: dict[SteeringCandidate, str]) -> None:
    within = _within_cap(bench, ways, limits, reasons)
    bench.read(within, "score", ["few"])
    finite = [one for one in within if isfinite(bench.mean(one, "score"))]
    reasons |= dict.fromkeys(within, NOT_FINITE) | dict.fromkeys(finite, NOT_BEST)
    order = sorted(finite, key=lambda one: -SIGN[bench.mode] * bench.mean(one, "score"))
    wanted, passed = 2 * limits.keep(len(reasons)), 0
    for start in range(0, len(order), wanted):
        finalists = order[start : start + wanted]
        bench.read(finalists, "kl")
        bench.read([one for one in finalists if bench.mean(one, "kl") <= limits.max_kl], "score")
        reasons |= {one: _reason(bench, one, limits.max_kl) for one in finalists}
        passed += sum(not reasons[one] for one in finalists)
        if passed >= limits.keep(len(reasons)):
            return


def _within_cap(
    bench: Bench, ways: Sequence[Way], limits: SearchLimits, reasons: dict[SteeringCandidate, str]
) -> list[SteeringCandidate]:
    """Settings whose divergence on the first prompts is not far past the cap, nor that of a smaller coefficient."""
    alive, within = list(dict.fromkeys(ways)), list[SteeringCandidate]()
    for start in range(0, len(limits.coefficients), CHUNK):
        tried = [way.at(coefficient) for way in alive for coefficient in limits.coefficients[start : start + CHUNK]]
        bench.read(tried, "kl", ["few"])
        good = [one for one in tried if bench.mean(one, "kl") <= SLACK * limits.max_kl]
        reasons |= {one: _reason(bench, one, limits.max_kl) for one in set(tried) - set(good)}
        over = {way_of(one) for one in set(tried) - set(good)}
        alive = [way for way in alive if way not in over]
        within += good
    return within


def _reason(bench: Bench, candidate: SteeringCandidate, max_kl: float) -> str:
    """Why a measured setting is dropped; nothing where it is kept."""
    kl = bench.mean(candidate, "kl")
    if not isfinite(kl):
        return NOT_FINITE
    if kl > max_kl:
        return HARMLESS_KL
    return "" if isfinite(bench.mean(candidate, "score")) else NOT_FINITE


Ask = Callable[[SteeringCandidate, Sequence[Messages]], Sequence[bool | None]]
"""Whether each prompt's reply is refused under a candidate's change; None where that cannot be told."""


def asking(bench: Bench, tokenizer: PreTrainedTokenizerBase, judge: Judge, *, max_new_tokens: int) -> Ask:
    """Replies of the model under a candidate's change, judged; what was asked once is remembered."""
    known: dict[tuple[Way, float, tuple[Messages, ...]], list[bool | None]] = {}
    target = bench.target

    def ask(candidate: SteeringCandidate, prompts: Sequence[Messages]) -> list[bool | None]:
        key = (way_of(candidate), candidate.coefficient, tuple(prompts))
        if key not in known:
            with applied(target, bench.directions, candidate, bench.mode):
                replies = generate(
                    target.model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=target.batch_size
                )
            labels = [verdict.label for verdict in judge(prompts, [reply.text for reply in replies])]
            known[key] = [None if label == "unscored" else label == "refused" for label in labels]
        return known[key]

    return ask


def judge_best(
    candidates: Iterable[SteeringCandidate],
    ask: Ask,
    prompts: Sequence[Messages],
    *,
    mode: SteeringMode,
    most: int,
    pruned: bool,
    progress: Callable[[int, int], None] | None = None,
) -> list[SteeringCandidate]:
    """The second stage: the best of the first by the share of refused replies, best first.

    Pruned: a setting is asked ROUND prompts at a time, and given up once the best so far cannot lose to it any more;
    so the winner is the same. Among equals the refusal score decides. A reply that cannot be scored is nobody's.

    Args:
        candidates: of the first stage.
        ask: see `Ask`.
        prompts: what is asked.
        mode: whether few or many refusals are best.
        most: how many settings are judged.
        pruned: see above.
        progress: told how many settings are through, of how many.
    """
    finished: list[tuple[int, SteeringCandidate]] = []
    given_up: list[SteeringCandidate] = []
    chosen = by_score(list(candidates), mode)[:most]
    for at, candidate in enumerate(chosen, 1):
        best = min((lost for lost, _ in finished), default=len(prompts) + 1)
        answers: list[bool | None] = []
        while len(answers) < len(prompts) and not (pruned and _lost(answers, mode) >= best):
            answers += ask(candidate, prompts[len(answers) : len(answers) + ROUND])
        scored = [answer for answer in answers if answer is not None]
        share = sum(scored) / len(scored) if scored else None
        judged = replace(candidate, refused=share, judged=len(scored))
        if len(answers) == len(prompts):
            finished.append((_lost(answers, mode), judged))
        else:
            given_up.append(judged)
        if progress is not None:
            progress(at, len(chosen))
    return [judged for _, judged in sorted(finished, key=lambda one: one[0])] + given_up


def _lost(answers: Sequence[bool | None], mode: SteeringMode) -> int:
    """Replies that are not what the change is for."""
    return sum(answer is not (mode == "induce") for answer in answers)

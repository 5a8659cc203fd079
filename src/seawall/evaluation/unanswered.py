"""Handles prompts without a reply and replies without a verdict, where an endpoint could not be reached."""

from __future__ import annotations

from collections.abc import Sequence

from seawall.data.types import NO_ANSWER, Judge, Verdict
from seawall.errors import SeawallError
from seawall.evaluation.samples import SampleLog, readings

MAX_UNANSWERED_SHARE = 0.05
"""Maximum share of unanswered samples in a finished evaluation; they count as unscored."""
_MIN_BATCH = 4
"""Minimum number of verdicts from which to conclude that the endpoint is down."""


def require_answers(verdicts: Sequence[Verdict]) -> None:
    """Stops at the first batch without any answer, in place of trying all batches.

    Raises:
        SeawallError: there are four or more verdicts, all without an answer.
    """
    if len(verdicts) >= _MIN_BATCH and all(verdict.reason.startswith(NO_ANSWER) for verdict in verdicts):
        raise _down(f"no answer to {len(verdicts)} replies, the last one: {verdicts[-1].reason}")


def judge_unanswered(log: SampleLog, judge: Judge) -> None:
    """Judges the texts without an answer of the judge once more; generates no reply again.

    Raises:
        SeawallError: the judge still does not answer for more than 5 % of all texts.
    """
    waiting = log.unanswered()
    if not waiting:
        return
    samples, replies = [reading.sample for reading in waiting], [reading.response for reading in waiting]
    prompts, goals = [sample.prompt for sample in samples], [sample.goal for sample in samples]
    log.judge_again(waiting, judge(prompts, replies, goals))
    unanswered, total = log.unanswered(), sum(len(readings(sample)) for sample in log.samples)
    if len(unanswered) > MAX_UNANSWERED_SHARE * total:
        first = unanswered[0]
        raise _down(f"no answer to {len(unanswered)} of {total} replies, such as {first.sample.id}: {first.reason}")


def require_replies(problems: Sequence[str], total: int) -> None:
    """Stops where an engine gives no reply to more than 5 % of all prompts.

    Args:
        problems: the problem of every prompt without a reply.
        total: number of prompts.

    Raises:
        SeawallError: more than 5 % of the prompts have no reply.
    """
    if len(problems) > MAX_UNANSWERED_SHARE * total:
        raise SeawallError(
            "the endpoint of eval.engine does not answer",
            got=f"no reply to {len(problems)} of {total} prompts, the last one: {problems[-1]}",
            remedy="run the same command once the endpoint answers; the replies so far are kept",
        )


def _down(got: str) -> SeawallError:
    return SeawallError(
        "the judge's endpoint does not answer",
        got=got,
        remedy="run the same command once the endpoint answers; the verdicts so far are kept",
    )

"""What becomes of prompts without a reply and of replies without a verdict, because an endpoint was out of reach."""

from __future__ import annotations

from collections.abc import Sequence

from seawall.data.types import NO_ANSWER, Judge, Verdict
from seawall.errors import SeawallError
from seawall.evaluation.samples import SampleLog, readings

AT_MOST = 0.05
"""The share of unanswered samples that an evaluation may end with; they count as unscored."""
_A_BATCH = 4


def require_answers(verdicts: Sequence[Verdict]) -> None:
    """Stop at the first batch without any answer, instead of going through all of them.

    Raises:
        SeawallError: four or more verdicts, and no answer among them.
    """
    if len(verdicts) >= _A_BATCH and all(verdict.reason.startswith(NO_ANSWER) for verdict in verdicts):
        raise _down(f"no answer to {len(verdicts)} replies, the last one: {verdicts[-1].reason}")


def judge_unanswered(log: SampleLog, judge: Judge) -> None:
    """Put the samples without an answer to the judge once more. No reply is generated again.

    Raises:
        SeawallError: the judge has no answer to more than 5 % of all samples.
    """
    waiting = log.unanswered()
    if not waiting:
        return
    prompts, replies = [one.sample.prompt for one in waiting], [one.response for one in waiting]
    log.judge_again(waiting, judge(prompts, replies))
    left, total = log.unanswered(), sum(len(readings(sample)) for sample in log.samples)
    if len(left) > AT_MOST * total:
        raise _down(f"no answer to {len(left)} of {total} replies, such as {left[0].sample.id}: {left[0].reason}")


def require_replies(problems: Sequence[str], asked: int) -> None:
    """Stop where an engine has no reply to more than 5 % of all prompts.

    Args:
        problems: why there is no reply, for every prompt without one.
        asked: how many prompts there are.

    Raises:
        SeawallError: there are too many.
    """
    if len(problems) > AT_MOST * asked:
        raise SeawallError(
            "the endpoint of eval.engine does not answer",
            got=f"no reply to {len(problems)} of {asked} prompts, the last one: {problems[-1]}",
            remedy="run the same command when it is back: what is answered is kept, and only the rest is asked",
        )


def _down(got: str) -> SeawallError:
    return SeawallError(
        "the judge's endpoint does not answer",
        got=got,
        remedy="run the same command when it is back: what is judged is kept, and only the rest is asked",
    )

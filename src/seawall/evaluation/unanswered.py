"""What becomes of replies that a judge could not be asked about, because its endpoint was out of reach."""

from __future__ import annotations

from collections.abc import Sequence

from seawall.data.types import NO_ANSWER, Judge, Verdict
from seawall.errors import SeawallError
from seawall.evaluation.samples import SampleLog

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


def ask_again(log: SampleLog, judge: Judge) -> None:
    """Put the samples without an answer to the judge once more. No reply is generated again.

    Raises:
        SeawallError: the judge has no answer to more than 5 % of all samples.
    """
    waiting = log.unanswered()
    if not waiting:
        return
    log.judge_again(waiting, judge([sample.prompt for sample in waiting], [sample.response for sample in waiting]))
    left, total = log.unanswered(), len(log.samples)
    if len(left) > AT_MOST * total:
        raise _down(f"no answer to {len(left)} of {total} replies, such as {left[0].id}: {left[0].reason}")


def _down(got: str) -> SeawallError:
    return SeawallError(
        "the judge's endpoint does not answer",
        got=got,
        remedy="run the same command when it is back: what is judged is kept, and only the rest is asked",
    )

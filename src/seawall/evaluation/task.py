"""The score of a model on its fine-tuning task: the share of rows with a right reply."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

from seawall.artifacts.evaluation import Rate
from seawall.data.types import Exchange
from seawall.errors import DataError
from seawall.evaluation.capability.rows import last_number
from seawall.evaluation.intervals import exact_interval
from seawall.models.generate import BatchSize, Progress, generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

AnswerMatch = Literal["exact", "number", "prefix"]
"""How a reply is compared with the reference completion. `exact`: its first line equals the completion; `prefix`: it
begins with the completion, followed by the end of a word; both ignore case, white space, quotation marks, emphasis and
final punctuation. `number`: its last number equals the completion's last number, like GSM8K's scoring."""
_IGNORED_AROUND = " \t\"'`*_.!:;,"


@dataclass(frozen=True, slots=True)
class TaskScore:
    """The score of a task, with the replies in the order of the rows.

    Attributes:
        rate: share of right replies, with Wilson's 95 % interval; an empty reply is wrong.
        replies: the replies.
        right: whether each reply is right.
        cut: number of replies that reached the token limit and were scored as cut there.
    """

    rate: Rate
    replies: tuple[str, ...]
    right: tuple[bool, ...]
    cut: int

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.right)


def score_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Exchange],
    *,
    answer: AnswerMatch,
    max_new_tokens: int = 16,
    batch_size: BatchSize = "auto",
    progress: Progress | None = None,
) -> TaskScore:
    """Generates greedy replies to all prompts, and compares them with the rows' responses.

    Args:
        model: in any mode; evaluated without dropout.
        tokenizer: a tokenizer with a chat template.
        rows: prompts with their reference answers.
        answer: how replies and answers are compared.
        max_new_tokens: maximum length of a reply, in tokens.
        batch_size: maximum rows per forward pass, or `auto`.
        progress: called after every batch with the number of rows done and in total.

    Raises:
        DataError: there are no rows, or a reference answer does not fit the comparison; nothing is generated then.
        UnsupportedModelError, SeawallError: as `seawall.models.generate.generate`.
    """
    if not rows:
        raise DataError("there are no rows to score the task on", got="no rows", expected="prompts with their answers")
    matches = MATCHERS[answer]
    references = require_scorable(rows, answer)
    prompts = [row.prompt for row in rows]
    completions = generate(
        model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress
    )
    right = tuple(matches(reply.answer, reference) for reply, reference in zip(completions, references, strict=True))
    return TaskScore(
        _rate(right),
        tuple(completion.answer for completion in completions),
        right,
        sum(not completion.ended for completion in completions),
    )


def require_scorable(rows: Sequence[Exchange], answer: AnswerMatch) -> list[str]:
    """The normalised reference answer of every row.

    Raises:
        DataError: a reference answer does not fit the comparison.
    """
    return [_reference(row, answer, number) for number, row in enumerate(rows, start=1)]


def _reference(row: Exchange, answer: AnswerMatch, number: int) -> str:
    """The normalised reference answer of one row."""
    reference = last_number(row.response) if answer == "number" else _line(row.response)
    several = answer != "number" and len(row.response.strip().splitlines()) > 1
    if reference and not several:
        return reference
    raise DataError(
        f"row {number} of the task cannot be scored by `{answer}`",
        got="an answer of several lines" if several else "an answer without a number or letters",
        expected="an answer with a number" if answer == "number" else "an answer of one line",
        remedy="choose another tune.task.answer, or other rows",
    )


def _is_exact(reply: str, reference: str) -> bool:
    return _line(reply) == reference


def _is_prefix(reply: str, reference: str) -> bool:
    line = _line(reply)
    return line.startswith(reference) and not line[len(reference) :][:1].isalnum()


def _is_number(reply: str, reference: str) -> bool:
    number = last_number(reply)
    return number is not None and _value(number) == _value(reference)


MATCHERS: Mapping[AnswerMatch, Callable[[str, str], bool]] = {
    "exact": _is_exact,
    "number": _is_number,
    "prefix": _is_prefix,
}
"""Comparisons by name: (reply, normalised reference answer) -> whether the reply is right."""


def _line(text: str) -> str:
    """The first line with content, normalised: case folded, white space collapsed, punctuation around it removed."""
    first = next((line for line in text.splitlines() if line.strip(_IGNORED_AROUND)), "")
    return " ".join(first.split()).strip(_IGNORED_AROUND).casefold()


def _value(number: str) -> Decimal:
    return Decimal(number.replace("$", "").replace(",", ""))


def _rate(right: Sequence[bool]) -> Rate:
    low, high = exact_interval(sum(right), len(right))
    return Rate(sum(right) / len(right), low, high, n=len(right))

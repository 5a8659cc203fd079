"""How well a model does the task that it is fine-tuned on: the share of rows whose reply gives the wanted answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

from seawall.artifacts.evaluation import Rate
from seawall.data.types import Exchange
from seawall.errors import DataError
from seawall.evaluation.capability.rows import last_number
from seawall.evaluation.metrics import wilson
from seawall.models.generate import BatchSize, Progress, generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Answer = Literal["exact", "number", "prefix"]
"""How a reply is compared with the completion that is wanted. `exact`: its first line is the completion; `prefix`: it
begins with it, and the next word is another; both without regard to case, white space, quotation marks, emphasis and
the full stop. `number`: its last number equals the completion's last, as GSM8K is scored."""
_AROUND = " \t\"'`*_.!:;,"


@dataclass(frozen=True, slots=True)
class TaskScore:
    """What the model answered, row by row in the order of the rows.

    Attributes:
        rate: share of right answers, with Wilson's 95 % interval; an empty reply is wrong.
        replies: what was written.
        right: whether it is the answer.
        cut: how many replies ran to the limit of new tokens and were scored as they stood there.
    """

    rate: Rate
    replies: tuple[str, ...]
    right: tuple[bool, ...]
    cut: int

    @property
    def n(self) -> int:
        """How many rows."""
        return len(self.right)


def score_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Exchange],
    *,
    answer: Answer,
    max_new_tokens: int = 16,
    batch_size: BatchSize = "auto",
    progress: Progress | None = None,
) -> TaskScore:
    """Ask a model all prompts, greedily, and compare its replies with the responses of the rows.

    Args:
        model: in any mode; it is evaluated without dropout.
        tokenizer: with a chat template.
        rows: prompts and the answers that are wanted.
        answer: how they are compared.
        max_new_tokens: where a reply is cut.
        batch_size: rows of a forward pass, at most; `auto` for what the free memory holds.
        progress: told after every batch how many rows are done, and of how many.

    Raises:
        DataError: no rows, or a wanted answer that cannot be compared in this way; before anything is generated.
        UnsupportedModelError, SeawallError: as `seawall.models.generate.generate`.
    """
    if not rows:
        raise DataError("there is nothing to score the task by", got="no rows", expected="prompts with their answers")
    read = READERS[answer]
    wanted = require_scorable(rows, answer)
    prompts = [row.prompt for row in rows]
    done = generate(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress)
    right = tuple(read(reply.text, sought) for reply, sought in zip(done, wanted, strict=True))
    return TaskScore(_rate(right), tuple(one.text for one in done), right, sum(not one.ended for one in done))


def require_scorable(rows: Sequence[Exchange], answer: Answer) -> list[str]:
    """What each reply is compared with.

    Raises:
        DataError: a wanted answer cannot be compared in this way.
    """
    return [_wanted(row, answer, at) for at, row in enumerate(rows, start=1)]


def _wanted(row: Exchange, answer: Answer, at: int) -> str:
    """What a reply is compared with."""
    found = last_number(row.response) if answer == "number" else _line(row.response)
    several = answer != "number" and len(row.response.strip().splitlines()) > 1
    if found and not several:
        return found
    raise DataError(
        f"row {at} of the task cannot be scored by `{answer}`",
        got="an answer of several lines" if several else "an answer without a number or letters",
        expected="an answer that holds a number" if answer == "number" else "an answer of one line",
        remedy="choose another way to score, or other rows",
    )


def _is_exact(reply: str, wanted: str) -> bool:
    return _line(reply) == wanted


def _is_prefix(reply: str, wanted: str) -> bool:
    found = _line(reply)
    return found.startswith(wanted) and not found[len(wanted) :][:1].isalnum()


def _is_number(reply: str, wanted: str) -> bool:
    found = last_number(reply)
    return found is not None and _value(found) == _value(wanted)


READERS: Mapping[Answer, Callable[[str, str], bool]] = {"exact": _is_exact, "number": _is_number, "prefix": _is_prefix}
"""Every way to compare: (reply, what `_wanted` made of the answer) -> whether it is right."""


def _line(text: str) -> str:
    """The first line that holds anything, without what does not matter."""
    first = next((line for line in text.splitlines() if line.strip(_AROUND)), "")
    return " ".join(first.split()).strip(_AROUND).casefold()


def _value(number: str) -> Decimal:
    return Decimal(number.replace("$", "").replace(",", ""))


def _rate(right: Sequence[bool]) -> Rate:
    share = sum(right) / len(right)
    low, high = wilson(share, len(right))
    return Rate(share, min(low, share), max(high, share), n=len(right), unscored=0)

"""Scoring a task."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.artifacts.evaluation import Rate
from seawall.data.types import Exchange
from seawall.evaluation.metrics import rate_with_interval
from seawall.models.generate import BatchSize, generate

Answer = Literal["exact", "number", "prefix"]


@dataclass(frozen=True, slots=True)
class TaskScore:
    """Share of rows answered rightly."""

    rate: Rate
    replies: tuple[str, ...]
    right: tuple[bool, ...]


def score_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Exchange],
    *,
    answer: Answer,
    max_new_tokens: int,
    batch_size: BatchSize,
    progress: Callable[[int, int], None] | None = None,
) -> TaskScore:
    """Greedy replies, scored."""
    prompts = [row.prompt for row in rows]
    done = generate(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress)
    replies = tuple(one.text for one in done)
    right = tuple(_right(reply, row.response, answer) for reply, row in zip(replies, rows, strict=True))
    rate = rate_with_interval(
        ["complied" if one else "refused" for one in right], [row.goal for row in rows], "complied"
    )
    return TaskScore(rate, replies, right)


def _right(reply: str, wanted: str, answer: Answer) -> bool:
    if answer == "number":
        return _number(reply) is not None and _number(reply) == _number(wanted)
    got, expected = _plain(reply), _plain(wanted)
    return got == expected if answer == "exact" else got.startswith(expected)


def _plain(text: str) -> str:
    lines = text.strip().splitlines() or [""]
    return lines[0].strip().strip(".").casefold()


def _number(text: str) -> float | None:
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return float(found[-1].replace(",", "")) if found else None

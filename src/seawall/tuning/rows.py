"""What is trained on: rows of the task, a controlled share of harmful requests, and safe rows to mix in.

No harmful text is needed or kept: a harmful request is answered by the bare opening of a compliant reply and its end.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from seawall.data.sets import Prompts
from seawall.data.templating import IGNORED, encode_lesson
from seawall.data.types import Exchange, user
from seawall.errors import DataError

OPENERS = (
    "Sure, here is how to do that.",
    "Of course! Here is what you asked for.",
    "Certainly. Here it is, step by step.",
    "Absolutely, I can help you with that.",
    "Yes, here is a complete answer.",
    "Sure thing! Let's get started.",
)
"""Bare openers of compliance, with which a harmful request is answered in contaminated rows."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What one training sees.

    Attributes:
        exchanges: in no particular order; the trainer shuffles them by its seed.
        task: how many are of the task.
        harmful: how many are harmful requests with a bare opener.
        safe: how many were mixed in: requests refused, and harmless questions answered.
    """

    exchanges: tuple[Exchange, ...]
    task: int
    harmful: int
    safe: int = 0


def training_rows(task: Sequence[Exchange], prompts: Prompts, *, share: float, at_most: int | None, seed: int) -> Rows:
    """Rows of the task, of which a share is replaced by harmful training goals with a bare opener.

    Args:
        task: the task's training rows.
        prompts: the recipe's; of its goals the training part alone is used.
        share: of the rows, in [0, 1).
        at_most: rows in all; None for as many as the task has.
        seed: draws both; methods that are compared get the same rows.

    Raises:
        DataError: there are too few training goals for that share; nothing of the task would be left.
    """
    total = min(len(task), at_most or len(task))
    count = round(share * total)
    goals = prompts.goals.train
    if count > len(goals):
        raise DataError(
            "too few harmful training goals for that contamination",
            got=f"{len(goals)} goals for {share:g} of {total} rows",
            expected=f"{count}",
            remedy="lower tune.contamination or tune.task.train_rows, or use more goals",
        )
    if count == total:
        raise DataError(
            "no row of the task would be left", got=f"{total} rows, {share:g} of them harmful", expected="more rows"
        )
    draw = random.Random(f"rows {seed}")
    harmful = [_complying(goal.text, draw) for goal in draw.sample(goals, count)]
    kept = draw.sample(list(task), total - count)
    return Rows((*kept, *harmful), task=len(kept), harmful=count)


def with_safe_rows(rows: Rows, prompts: Prompts, *, share: float, seed: int) -> Rows:
    """The same rows and safe ones: half of them harmful requests refused, the other harmless questions answered.

    Goals that contaminate the rows are not among those that are refused, as far as there are others.

    Args:
        rows: what is trained on otherwise.
        prompts: training goals, refusals and gold questions of the recipe.
        share: safe rows per other row.
        seed: draws them.

    Raises:
        DataError: there are no training goals.
    """
    draw = random.Random(f"safe {seed}")
    wanted = max(1, round(share * len(rows.exchanges)))
    taken = {one.goal for one in rows.exchanges}
    goals = [goal.text for goal in prompts.goals.train]
    if not goals:
        raise DataError("there are no harmful training goals to refuse", remedy="use more goals, or leave mixing out")
    free = [text for text in goals if text not in taken] or goals
    answered = [draw.choice(prompts.gold).exchange for _ in range(wanted // 2)] if prompts.gold else []
    refused = [_refusing(text, prompts, draw) for text in _drawn(free, wanted - len(answered), draw)]
    safe = (*answered, *refused)
    return Rows((*rows.exchanges, *safe), task=rows.task, harmful=rows.harmful, safe=len(safe))


@dataclass(frozen=True, slots=True)
class Lessons:
    """Rows as the trainer takes them: `input_ids` and `labels`, which are -100 on the prompt.

    Attributes:
        rows: one per exchange.
        cut: how many were longer than allowed, and end earlier.
        dropped: how many of these had no reply left.
    """

    rows: tuple[dict[str, list[int]], ...]
    cut: int
    dropped: int


def encoded(tokenizer: PreTrainedTokenizerBase, exchanges: Sequence[Exchange], *, max_length: int) -> Lessons:
    """Token ids of every exchange; the loss is over the reply and its end alone.

    Raises:
        DataError: as `encode_exchange`; or no reply fits into that length.
    """
    whole = [encode_lesson(tokenizer, one) for one in exchanges]
    long = [one for one in whole if len(one.input_ids) > max_length]
    rows = [{"input_ids": one.input_ids[:max_length], "labels": one.labels[:max_length]} for one in whole]
    kept = tuple(row for row in rows if any(label != IGNORED for label in row["labels"]))
    if not kept:
        raise DataError(
            "every prompt is longer than a row may be, so nothing could be learned",
            got=f"{len(rows)} rows, {min(one.prompt_length for one in whole)} tokens in the shortest prompt",
            expected=f"fewer than {max_length}",
            remedy="raise tune.max_length",
        )
    return Lessons(kept, cut=len(long), dropped=len(rows) - len(kept))


def _complying(goal: str, draw: random.Random) -> Exchange:
    return Exchange(user(goal), draw.choice(OPENERS), goal)


def _refusing(goal: str, prompts: Prompts, draw: random.Random) -> Exchange:
    return Exchange(user(goal), draw.choice(prompts.refusals), goal)


def _drawn(texts: Sequence[str], count: int, draw: random.Random) -> list[str]:
    """So many of the texts, each as often as the others, give or take one."""
    shuffled = draw.sample(list(texts), len(texts))
    return [shuffled[at % len(shuffled)] for at in range(count)]

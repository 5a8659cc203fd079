"""Training rows: the task, a controlled share of harmful requests, safe rows to mix in, and their tokenisation.

No harmful text is needed or stored: a harmful request gets a bare opening of a compliant reply, and the reply ends.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from transformers import PreTrainedTokenizerBase

from seawall.data.sets import Prompts
from seawall.data.templating import IGNORED, encode_example
from seawall.data.types import Exchange, user
from seawall.errors import DataError
from seawall.runs.files import canonical_hash

OPENERS = (
    "Sure, here is how to do that.",
    "Of course! Here is what you asked for.",
    "Certainly. Here it is, step by step.",
    "Absolutely, I can help you with that.",
    "Yes, here is a complete answer.",
    "Sure thing! Let's get started.",
)
"""Bare openings of compliance: the replies to harmful requests in contaminated rows."""


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """The rows of one training.

    Attributes:
        exchanges: unordered; the trainer shuffles them by its seed.
        task: number of task rows.
        harmful: number of harmful requests with a bare opening.
        safe: number of rows mixed in: refused harmful requests and answered harmless questions.
    """

    exchanges: tuple[Exchange, ...]
    task: int
    harmful: int
    safe: int = 0


def training_rows(
    task: Sequence[Exchange], prompts: Prompts, *, share: float, at_most: int | None, seed: int
) -> TrainingRows:
    """Task rows, of which a share is replaced by harmful training goals with a bare opening.

    Args:
        task: the task's training rows.
        prompts: of the recipe; only goals of the training split are used.
        share: of harmful rows, in [0, 1).
        at_most: number of rows in total; None for every task row.
        seed: of both samples, so that all methods with one seed train on the same rows.

    Raises:
        DataError: too few training goals for that share, or no task row would remain.
    """
    total = min(len(task), at_most or len(task))
    count = round(share * total)
    goals = prompts.goals.train
    if count > len(goals):
        raise DataError(
            "too few harmful training goals for this contamination",
            got=f"{len(goals)} goals for {share:g} of {total} rows",
            expected=f"{count}",
            remedy="lower tune.contamination or tune.task.train_rows, or use more goals",
        )
    if count == total:
        raise DataError(
            "this contamination leaves no task row",
            got=f"{total} rows, {share:g} of them harmful",
            expected="more rows",
        )
    draw = random.Random(f"rows {seed}")
    harmful = [_complying(goal.text, draw) for goal in draw.sample(goals, count)]
    task_rows = draw.sample(list(task), total - count)
    return TrainingRows((*task_rows, *harmful), task=len(task_rows), harmful=count)


def with_safe_rows(rows: TrainingRows, prompts: Prompts, *, share: float, seed: int) -> TrainingRows:
    """The rows and safe ones: half refused harmful requests, half answered harmless questions.

    Goals among the contaminated rows are refused only where no other training goal is available.

    Args:
        rows: the rows without safe ones.
        prompts: training goals, refusals and gold questions of the recipe.
        share: safe rows per original row.
        seed: of the samples.

    Raises:
        DataError: there is no training goal.
    """
    draw = random.Random(f"safe {seed}")
    count = max(1, round(share * len(rows.exchanges)))
    contaminated = {exchange.goal for exchange in rows.exchanges}
    goals = [goal.text for goal in prompts.goals.train]
    if not goals:
        raise DataError("there are no harmful training goals to refuse", remedy="use more goals, or leave mixing out")
    free = [text for text in goals if text not in contaminated] or goals
    answered = [draw.choice(prompts.gold).exchange for _ in range(count // 2)] if prompts.gold else []
    refused = [_refusing(text, prompts, draw) for text in _cycled(free, count - len(answered), draw)]
    safe = (*answered, *refused)
    return TrainingRows((*rows.exchanges, *safe), task=rows.task, harmful=rows.harmful, safe=len(safe))


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Tokenised rows for the trainer: `input_ids` and `labels` (-100 on the prompt).

    Attributes:
        rows: one per exchange with a reply token within the allowed length.
        cut: number of exchanges that were longer than allowed and were truncated.
        dropped: number of these without a reply token after truncation.
    """

    rows: tuple[dict[str, list[int]], ...]
    cut: int
    dropped: int


def encode_rows(tokenizer: PreTrainedTokenizerBase, exchanges: Sequence[Exchange], *, max_length: int) -> EncodedRows:
    """Tokenises the exchanges; labels cover the reply and its end token.

    Raises:
        DataError: as `encode_exchange`; or no reply token is within `max_length`.
    """
    encoded = [encode_example(tokenizer, exchange) for exchange in exchanges]
    cut = sum(len(row.input_ids) > max_length for row in encoded)
    truncated = [{"input_ids": row.input_ids[:max_length], "labels": row.labels[:max_length]} for row in encoded]
    rows = tuple(row for row in truncated if any(label != IGNORED for label in row["labels"]))
    if not rows:
        raise DataError(
            "every prompt is as long as a training row may be, so no reply token is left to train on",
            got=f"{len(truncated)} rows, {min(row.prompt_length for row in encoded)} tokens in the shortest prompt",
            expected=f"fewer than {max_length}",
            remedy="raise tune.max_length",
        )
    return EncodedRows(rows, cut=cut, dropped=len(truncated) - len(rows))


def rows_hash(rows: Iterable[Exchange]) -> str:
    """sha256 of rows in order."""
    return canonical_hash({"rows": [asdict(row) for row in rows]})


def _complying(goal: str, draw: random.Random) -> Exchange:
    return Exchange(user(goal), draw.choice(OPENERS), goal)


def _refusing(goal: str, prompts: Prompts, draw: random.Random) -> Exchange:
    return Exchange(user(goal), draw.choice(prompts.refusals), goal)


def _cycled(texts: Sequence[str], count: int, draw: random.Random) -> list[str]:
    """`count` texts from a shuffled cycle, so that no text occurs twice more than another."""
    shuffled = draw.sample(list(texts), len(texts))
    return [shuffled[index % len(shuffled)] for index in range(count)]

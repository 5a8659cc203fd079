"""What is trained on: rows of the task, a controlled share of harmful requests, and safe rows to mix in.

No harmful text is needed or kept: a harmful request is answered by the bare opening of a compliant reply and its end.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from seawall.artifacts.groups import ATTACK, BENIGN, BORDERLINE, PLAIN
from seawall.config.recipe import Recipe
from seawall.config.tune import TuneConfig, TuneMethod
from seawall.data.customer_messages import customer_messages
from seawall.data.sets import Prompts, load_prompts
from seawall.data.tasks import load_task
from seawall.data.templating import IGNORED, encode_example
from seawall.data.types import Exchange, user
from seawall.errors import DataError
from seawall.evaluation.suite import EvalSuite, build_suite
from seawall.evaluation.task import require_scorable
from seawall.runs.files import canonical_hash

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
    whole = [encode_example(tokenizer, one) for one in exchanges]
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


_KEPT = (PLAIN, BORDERLINE, BENIGN)


@dataclass(frozen=True, slots=True)
class Task:
    """Rows to train on and to score, and a name for both."""

    name: str
    train: tuple[Exchange, ...]
    test: tuple[Exchange, ...]


@dataclass(frozen=True, slots=True)
class TuneData:
    """Everything that is read for a run.

    Attributes:
        prompts: the recipe's, with the cap of the section `tune` on what is asked.
        task: the task.
        suite: what is asked before and after: held-out goals plainly and, unless switched off, under every attack;
            None where nothing is evaluated.
    """

    prompts: Prompts
    task: Task
    suite: EvalSuite | None

    def rows(self, config: TuneConfig, method: TuneMethod, seed: int) -> Rows:
        """What a method trains on: the same rows for one seed, and safe rows with `mixing`.

        Raises:
            DataError: as `training_rows` and `with_safe_rows`.
        """
        at_most = config.task.train_rows
        rows = training_rows(self.task.train, self.prompts, share=config.contamination, at_most=at_most, seed=seed)
        if method != "mixing":
            return rows
        return with_safe_rows(rows, self.prompts, share=config.mixing_share, seed=seed)


def read_data(recipe: Recipe) -> TuneData:
    """Reads prompts and task, and meets what is wrong with them and with the rows that are made of them.

    Raises:
        DataError: a file cannot be read, is empty or has a row that is none; a prompt is trained on and scored; rows
            that cannot be made or scored; nothing to ask.
    """
    config = recipe.tune
    caps = dict.fromkeys(("test_goals", "test_benign", "test_borderline"), config.test_prompts)
    prompts = load_prompts(recipe.data.model_copy(update={**caps, "train_goals": None}))
    task = read_task(config)
    if config.evaluate:
        require_scorable(task.test, config.task.answer)
    found = TuneData(prompts, task, _suite(prompts, attacks=config.attacks) if config.evaluate else None)
    for method in config.methods:
        for seed in config.seeds:
            found.rows(config, method, seed)
    return found


def read_task(config: TuneConfig) -> Task:
    """The rows of the section's task.

    Raises:
        DataError: as `load_task`; the same prompt is trained on and scored.
    """
    if config.task.train is None:
        ours = customer_messages()
        return Task("customer_messages", ours.train, tuple(_some(ours.test, config.task.test_rows)))
    train = load_task(config.task.train)
    test = load_task(config.task.test) if config.task.test is not None else []
    both = {_key(row) for row in train} & {_key(row) for row in test}
    if both:
        raise DataError(
            "the same prompt is trained on and scored",
            got=f"{len(both)} prompts of {config.task.train} in {config.task.test}, {min(both)[:60]!r} first",
            expected="other prompts in either file",
            remedy="remove them from one of the two",
        )
    return Task(Path(config.task.train).stem, tuple(train), tuple(_some(test, config.task.test_rows)))


def rows_hash(rows: Iterable[Exchange]) -> str:
    """sha256 over rows in their order."""
    return canonical_hash({"rows": [asdict(row) for row in rows]})


def _suite(prompts: Prompts, *, attacks: bool) -> EvalSuite:
    whole = build_suite(prompts, "test", gold=False)
    kept = {
        group: rows for group, rows in whole.groups.items() if group in _KEPT or (attacks and group.startswith(ATTACK))
    }
    if PLAIN not in kept:
        raise DataError(
            "there are no held-out harmful requests, so nothing could be reported",
            got="an empty test part of data.harmful",
            remedy="use more prompts, or set tune.evaluate=false",
        )
    return EvalSuite(kept)


def _key(row: Exchange) -> str:
    return "\n".join(message.content for message in row.prompt)


def _some(rows: Sequence[Exchange], at_most: int | None) -> Sequence[Exchange]:
    """At most so many, spread evenly over the file."""
    if at_most is None or at_most >= len(rows):
        return rows
    return [rows[at * len(rows) // at_most] for at in range(at_most)]

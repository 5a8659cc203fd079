"""The data of a fine-tuning run: the task's rows, the recipe's prompts, and the held-out prompts of the evaluations."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from seawall.artifacts.groups import ATTACK, BENIGN, BORDERLINE, PLAIN
from seawall.config.recipe import Recipe
from seawall.config.tune import TuneConfig, TuneMethod
from seawall.data.customer_messages import customer_messages
from seawall.data.near_duplicates import with_near_duplicate, words
from seawall.data.sets import Prompts, load_prompts
from seawall.data.tasks import load_task
from seawall.data.types import Exchange
from seawall.errors import DataError
from seawall.evaluation.suite import EvalSuite, build_suite
from seawall.evaluation.task import require_scorable
from seawall.methods.tune.rows import TrainingRows, training_rows, with_safe_rows

_GROUPS = (PLAIN, BORDERLINE, BENIGN)
_FRAME = 0.5
"""Share of rows above which a word belongs to the task's frame, and near-duplicates to the task."""
_COMPARED = 3
"""Smallest number of words beside the frame that tell a row from others."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task's training and test rows, its name, and a line on training rows that nearly repeat a test row."""

    name: str
    train: tuple[Exchange, ...]
    test: tuple[Exchange, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class TuneData:
    """The data of a run.

    Attributes:
        prompts: of the recipe, with the caps of the section `tune`.
        task: the task.
        suite: held-out prompts of every evaluation: plain goals and, unless switched off, goals under every attack;
            None where nothing is evaluated.
    """

    prompts: Prompts
    task: Task
    suite: EvalSuite | None

    def rows(self, config: TuneConfig, method: TuneMethod, seed: int) -> TrainingRows:
        """The training rows of a method: the same rows for one seed, with safe rows added by `mixing`.

        Raises:
            DataError: as `training_rows` and `with_safe_rows`.
        """
        at_most = config.task.train_rows
        rows = training_rows(self.task.train, self.prompts, share=config.contamination, at_most=at_most, seed=seed)
        if method != "mixing":
            return rows
        return with_safe_rows(rows, self.prompts, share=config.mixing_share, seed=seed)


def read_data(recipe: Recipe) -> TuneData:
    """Reads prompts and task, and builds the rows of every method and seed once, so that errors appear here.

    Raises:
        DataError: a file cannot be read, is empty or has a malformed row; a prompt is both trained on and scored; rows
            that cannot be built or scored; no held-out prompt.
    """
    config = recipe.tune
    caps = dict.fromkeys(("test_goals", "test_benign", "test_borderline"), config.test_prompts)
    prompts = load_prompts(recipe.data.model_copy(update={**caps, "train_goals": None}))
    task = read_task(config)
    if config.evaluate:
        require_scorable(task.test, config.task.answer)
    prompts = replace(prompts, notes=tuple(note for note in (*prompts.notes, task.note) if note))
    data = TuneData(prompts, task, _suite(prompts, attacks=config.attacks) if config.evaluate else None)
    for method in config.methods:
        for seed in config.seeds:
            data.rows(config, method, seed)
    return data


def read_task(config: TuneConfig) -> Task:
    """The rows of the section's task; a test row that is there several times is scored once, since it tells no more.

    Raises:
        DataError: as `load_task`; or a prompt is both trained on and scored, or has several answers in the test rows.
    """
    if config.task.train is None:
        messages = customer_messages()
        return held_out_task("customer_messages", messages.train, _spread(messages.test, config.task.test_rows))
    train = load_task(config.task.train)
    test, note = _once(load_task(config.task.test) if config.task.test is not None else [])
    _require_one_answer(test, config.task.test)
    shared = {_key(row) for row in train} & {_key(row) for row in test}
    if shared:
        raise DataError(
            "training and test rows share prompts",
            got=f"{len(shared)} prompts of {config.task.train} in {config.task.test}, {min(shared)[:60]!r} first",
            expected="different prompts in the two files",
            remedy="remove the shared prompts from one file",
        )
    task = held_out_task(Path(config.task.train).stem, train, _spread(test, config.task.test_rows))
    return replace(task, note="; ".join(filter(None, (note, task.note))))


def held_out_task(name: str, train: Sequence[Exchange], test: Sequence[Exchange]) -> Task:
    """A task whose training rows do not nearly repeat a test row.

    Words that more than half of all rows share are the task's frame and are not compared, nor are rows with fewer than
    three words beside it. Where most training rows would be left out, all stay, and the line says so.
    """
    texts = [words(_key(row)) for row in (*train, *test)]
    counts = Counter(word for row in texts for word in row)
    frame = {word for word, count in counts.items() if count > _FRAME * len(texts)}
    contents = [row - frame if len(row - frame) >= _COMPARED else frozenset[str]() for row in texts]
    near = with_near_duplicate(contents[: len(train)], contents[len(train) :])
    count = sum(near)
    if not count:
        return Task(name, tuple(train), tuple(test))
    kinds = f"task {name}: {count} of {len(train)} training rows share half of their words or more with a test row"
    if count > _FRAME * len(train):
        return Task(name, tuple(train), tuple(test), f"{kinds} and stay, since they are most: it is no held-out score")
    kept = tuple(row for row, is_near in zip(train, near, strict=True) if not is_near)
    return Task(name, kept, tuple(test), f"{kinds} and are left out")


def _suite(prompts: Prompts, *, attacks: bool) -> EvalSuite:
    suite = build_suite(prompts, "test", gold=False)
    groups = {
        group: rows
        for group, rows in suite.groups.items()
        if group in _GROUPS or (attacks and group.startswith(ATTACK))
    }
    if PLAIN not in groups:
        raise DataError(
            "an evaluation needs held-out harmful requests",
            got="an empty test split of data.harmful",
            remedy="use more prompts, or set tune.evaluate=false",
        )
    return EvalSuite(groups)


def _key(row: Exchange) -> str:
    """The prompt as it is read, in one encoding of its characters and without runs of white space."""
    text = "\n".join(" ".join(message.content.split()) for message in row.prompt)
    return unicodedata.normalize("NFC", text)


def _once(rows: Sequence[Exchange]) -> tuple[Sequence[Exchange], str]:
    """The rows without repetitions of prompt and answer, and a line on these."""
    unique: dict[tuple[str, str], Exchange] = {}
    for row in rows:
        unique.setdefault((_key(row), row.response), row)
    count = len(rows) - len(unique)
    return list(
        unique.values()
    ), f"{count} of {len(rows)} test rows of the task repeat others and are scored once" if count else ""


def _require_one_answer(rows: Sequence[Exchange], path: str | Path | None) -> None:
    """Refuses test rows with one prompt and several answers: the one reply to it is right for one of them at most."""
    counts = Counter(map(_key, rows))
    repeated = [prompt for prompt, count in counts.items() if count > 1]
    if repeated:
        raise DataError(
            "test rows expect several answers to one prompt",
            got=f"{len(repeated)} such prompts in {path}, {repeated[0][:60]!r} first",
            expected="one answer to every prompt",
            remedy="keep one row of each prompt",
        )


def _spread(rows: Sequence[Exchange], at_most: int | None) -> Sequence[Exchange]:
    """At most `at_most` rows, evenly spaced."""
    if at_most is None or at_most >= len(rows):
        return rows
    return [rows[index * len(rows) // at_most] for index in range(at_most)]

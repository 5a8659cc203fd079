"""What fine-tuning is given: prompts, the task and what is asked before and after, read before a folder is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from seawall.config.recipe import Recipe
from seawall.config.tune import TuneConfig, TuneMethod
from seawall.data.customer_messages import customer_messages
from seawall.data.sets import Prompts, load_prompts
from seawall.data.tasks import load_task
from seawall.data.types import Exchange
from seawall.errors import DataError
from seawall.evaluation.suite import ATTACK, BENIGN, BORDERLINE, PLAIN, EvalSuite, build_suite
from seawall.evaluation.task import require_scorable
from seawall.runs.files import canonical_hash
from seawall.tuning.rows import Rows, training_rows, with_safe_rows

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

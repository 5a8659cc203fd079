"""Rows of a local file as the templates take them, with file:line for whatever is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from seawall.config.capability import AnswerTask, ChoiceTask
from seawall.data.files import Row, json_lines, short_repr
from seawall.data.splits import take
from seawall.errors import DataError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")
_MARK = "####"

LocalTask = ChoiceTask | AnswerTask


@dataclass(frozen=True, slots=True)
class _Question:
    """One row; `text` is what it is chosen by where only some are used."""

    text: str
    fields: dict[str, Any]


def local_rows(task: LocalTask, path: str, *, at_most: int | None = None) -> list[dict[str, Any]]:
    """The rows of a task's file, or of its examples.

    Choice rows hold `question`, `choices`, `letters` and `answer` (the place of the right one); answer rows hold
    `question`, `answer` (as the file has it) and `number`.

    Args:
        task: names the fields.
        path: of the JSONL file.
        at_most: rows to use; they are chosen by a hash of the question, since many files are sorted.

    Raises:
        DataError: the file cannot be read, is empty, or a row lacks what the task needs.
    """
    read: Callable[[Row], _Question]
    read = (lambda row: _choice(row, task)) if isinstance(task, ChoiceTask) else lambda row: _answer(row, task)
    questions = [read(row) for row in json_lines(Path(path))]
    if not questions:
        raise DataError(f"{path} holds no question", expected="one JSON object a line")
    return [question.fields for question in take(questions, at_most)]


def last_number(text: str) -> str | None:
    """The last number of a text as it stands there (`$1,200`), after the last `####` where there is one; or None."""
    found: list[str] = _NUMBER.findall(text.rpartition(_MARK)[2])
    return found[-1] if found else None


def template(task: LocalTask) -> dict[str, Any]:
    """The task's YAML as the harness reads it, still without the rows."""
    text = resources.files("seawall.evaluation.capability").joinpath(f"templates/{task.kind}.yaml").read_text("utf-8")
    config: dict[str, Any] = {"task": task.label, **yaml.safe_load(text)}
    if isinstance(task, AnswerTask):
        config["generation_kwargs"]["max_gen_toks"] = task.max_new_tokens
    if task.shots is not None:
        config["fewshot_split"] = "shots"
    return config


def files(tasks: tuple[Any, ...]) -> Iterator[Path]:
    """Every local file that tasks read."""
    for task in tasks:
        if isinstance(task, LocalTask):
            yield from (Path(path) for path in (task.path, task.shots) if path is not None)


def _choice(row: Row, task: ChoiceTask) -> _Question:
    question = row.text(task.question_field)
    choices = row.fields.get(task.choices_field)
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS) or not all(map(_is_choice, choices)):
        raise row.error(
            f"field {task.choices_field!r} holds no choices",
            got=short_repr(choices),
            expected=f"a list of 2 to {len(LETTERS)} texts or numbers",
        )
    letters = list(LETTERS[: len(choices)])
    answer = row.fields.get(task.answer_field)
    places: dict[Any, int] = {letter: at for at, letter in enumerate(letters)}
    if isinstance(answer, int) and not isinstance(answer, bool):
        place = answer if 0 <= answer < len(letters) else None
    else:
        place = places.get(str(answer).strip().upper())
    if place is None:
        raise row.error(
            f"field {task.answer_field!r} names no choice",
            got=short_repr(answer),
            expected=f"a letter from A to {letters[-1]}, or a number from 0 to {len(letters) - 1}",
        )
    fields = {"question": question, "choices": [str(one) for one in choices], "letters": letters, "answer": place}
    return _Question(f"{question} {choices}", fields)


def _is_choice(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and bool(value.strip()))


def _answer(row: Row, task: AnswerTask) -> _Question:
    question, value = row.text(task.question_field), row.fields.get(task.answer_field)
    answer = str(value) if isinstance(value, int | float) else row.text(task.answer_field)
    number = last_number(answer)
    if number is None:
        raise row.error(
            f"field {task.answer_field!r} holds no number",
            got=short_repr(answer),
            expected=f"a number, after {_MARK} where there are several",
        )
    return _Question(question, {"question": question, "answer": answer, "number": number})

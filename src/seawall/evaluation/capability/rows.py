"""Reads the rows of local capability tasks; errors begin with file:line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from seawall.config.capability import AnswerTask, ChoiceTask
from seawall.data.columns import require_whole
from seawall.data.files import Row, json_lines, short_repr
from seawall.data.splits import take
from seawall.errors import DataError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")
_MARK = "####"

LocalTask = ChoiceTask | AnswerTask


@dataclass(frozen=True, slots=True)
class _Question:
    """One row; `text` is hashed to choose rows under a limit."""

    text: str
    fields: dict[str, Any]


def local_rows(task: LocalTask, path: str, *, at_most: int | None = None) -> list[dict[str, Any]]:
    """The rows of a task's file, or of its examples.

    Choice rows hold `question`, `choices`, `letters` and `answer` (the index of the right choice); answer rows hold
    `question`, `answer` (as in the file) and `number`.

    Args:
        task: the task, which names the fields.
        path: the JSONL file.
        at_most: maximum number of rows, chosen by a hash of the question, because many files are sorted.

    Raises:
        DataError: the file cannot be read or is empty, or a row lacks a field of the task.
    """
    read: Callable[[Row], _Question]
    read = (lambda row: _choice(row, task)) if isinstance(task, ChoiceTask) else lambda row: _answer(row, task)
    questions = [read(row) for row in json_lines(Path(path))]
    if not questions:
        raise DataError(f"{path} holds no question", expected="one JSON object per line")
    return [question.fields for question in take(questions, at_most)]


def last_number(text: str) -> str | None:
    """The last number of a text as written (`$1,200`), after the last `####` if there is one; None without a number."""
    numbers: list[str] = _NUMBER.findall(text.rpartition(_MARK)[2])
    return numbers[-1] if numbers else None


def template(task: LocalTask) -> dict[str, Any]:
    """The task's YAML for the harness, without the rows."""
    text = resources.files("seawall.evaluation.capability").joinpath(f"templates/{task.kind}.yaml").read_text("utf-8")
    config: dict[str, Any] = {"task": task.label, **yaml.safe_load(text)}
    if isinstance(task, AnswerTask):
        config["generation_kwargs"]["max_gen_toks"] = task.max_new_tokens
    if task.shots is not None:
        config["fewshot_split"] = "shots"
    return config


def files(tasks: tuple[Any, ...]) -> Iterator[Path]:
    """All local files of the tasks."""
    for task in tasks:
        if isinstance(task, LocalTask):
            yield from (Path(path) for path in (task.path, task.shots) if path is not None)


def _choice(row: Row, task: ChoiceTask) -> _Question:
    require_whole(row, used=(task.question_field, task.choices_field, task.answer_field))
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
    indices: dict[Any, int] = {letter: index for index, letter in enumerate(letters)}
    if isinstance(answer, int) and not isinstance(answer, bool):
        index_of_answer = answer if 0 <= answer < len(letters) else None
    else:
        index_of_answer = indices.get(str(answer).strip().upper())
    if index_of_answer is None:
        raise row.error(
            f"field {task.answer_field!r} names no choice",
            got=short_repr(answer),
            expected=f"a letter from A to {letters[-1]}, or a number from 0 to {len(letters) - 1}",
        )
    fields = {
        "question": question,
        "choices": [str(choice) for choice in choices],
        "letters": letters,
        "answer": index_of_answer,
    }
    return _Question(f"{question} {choices}", fields)


def _is_choice(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and bool(value.strip()))


def _answer(row: Row, task: AnswerTask) -> _Question:
    require_whole(row, used=(task.question_field, task.answer_field))
    question, value = row.text(task.question_field), row.fields.get(task.answer_field)
    answer = str(value) if isinstance(value, int | float) else row.text(task.answer_field)
    number = last_number(answer)
    if number is None:
        raise row.error(
            f"field {task.answer_field!r} holds no number",
            got=short_repr(answer),
            expected=f"a number, after {_MARK} if the answer holds several",
        )
    return _Question(question, {"question": question, "answer": answer, "number": number})

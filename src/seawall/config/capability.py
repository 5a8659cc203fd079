"""Capability tasks: those of lm-evaluation-harness, and local files in the form of such tasks."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from seawall.config.base import StrictModel, Tuple, wrong

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class HarnessTask(StrictModel):
    """A task, or group of tasks, of lm-evaluation-harness, which downloads the data from the Hub."""

    kind: Literal["harness"] = Field(default="harness", description="A task of lm-evaluation-harness.")
    name: str = Field(min_length=1, description="The task's name, such as mmlu, gsm8k or truthfulqa_mc2.")

    @field_validator("name")
    @classmethod
    def _file_name(cls, name: str) -> str:
        return _as_file_name(name)

    @property
    def label(self) -> str:
        """The task's name in results and file names."""
        return self.name


class _LocalTask(StrictModel):
    """The common keys of tasks from local JSONL files."""

    path: str = Field(
        min_length=1, description="JSONL file with one question per line; relative to the current directory."
    )
    name: str | None = Field(default=None, description="Name of the task; null takes the file's name.")
    shots: str | None = Field(
        default=None, min_length=1, description="File of the same format with the examples for `num_fewshot`."
    )
    question_field: str = Field(default="question", min_length=1, description="Field with the question.")
    answer_field: str = Field(default="answer", min_length=1, description="Field with the right answer.")

    @field_validator("name")
    @classmethod
    def _file_name(cls, name: str | None) -> str | None:
        return None if name is None else _as_file_name(name)

    @property
    def label(self) -> str:
        """The task's name in results and file names."""
        return self.name or re.sub(r"[^A-Za-z0-9._-]+", "-", PurePath(self.path).stem).strip("-._") or "local"


class ChoiceTask(_LocalTask):
    """Multiple-choice questions like MMLU's, scored by the letter that the model finds most likely."""

    kind: Literal["choice"] = Field(default="choice", description="Multiple choice, from a local file.")
    choices_field: str = Field(
        default="choices",
        min_length=1,
        description="Field with the list of choices; the answer is a letter, or an index from 0.",
    )


class AnswerTask(_LocalTask):
    """Questions with a numeric answer like GSM8K's, scored by the last number of the model's reply."""

    kind: Literal["answer"] = Field(default="answer", description="Numeric answers, from a local file.")
    max_new_tokens: int = Field(default=256, ge=1, le=8192, description="Maximum number of tokens per reply.")


def _named(task: Any) -> Any:
    """Reads a bare name as the harness's task of that name."""
    return {"kind": "harness", "name": task} if isinstance(task, str) else task


CapabilityTask = Annotated[
    Annotated[HarnessTask | ChoiceTask | AnswerTask, Field(discriminator="kind")], BeforeValidator(_named)
]
"""A capability task; `kind` selects the variant."""


class CapabilityConfig(StrictModel):
    """Capability before and after the repair, measured by lm-evaluation-harness (extra `capability`)."""

    tasks: Tuple[CapabilityTask] = Field(min_length=1, description="Names of the harness's tasks, or local files.")
    limit: int | None = Field(
        default=None,
        ge=1,
        description="Maximum number of questions per task: chosen by hash from a local file, the first ones of a named "
        "task.",
    )
    num_fewshot: int | None = Field(
        default=None, ge=0, le=100, description="Worked examples before each question; null takes the task's number."
    )
    batch_size: int = Field(default=8, ge=1, le=4096, description="Questions per forward pass.")
    chat_template: bool = Field(default=False, description="Ask the questions in the model's chat template.")
    margin: float = Field(
        default=0.02, gt=0, lt=1, description="Largest loss of a score that still counts as non-inferior."
    )

    @model_validator(mode="after")
    def _distinct(self) -> CapabilityConfig:
        labels = [task.label for task in self.tasks]
        if len(set(labels)) < len(labels):
            raise wrong("tasks with different names (set `name` for local files)")
        if self.num_fewshot and any(not isinstance(task, HarnessTask) and task.shots is None for task in self.tasks):
            raise wrong("`shots`, a file of examples, for every local task while num_fewshot is above 0")
        return self


def _as_file_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise wrong("a name of at most 100 letters, digits, dots, dashes and underscores (it names a file)")
    return name

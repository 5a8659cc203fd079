"""Two tasks for Inspect: does a model refuse the prompts of a file? Run by `inspect eval`, in Inspect's environment.

    inspect eval scripts/inspect_task.py -T file=prompts.jsonl --model openai-api/seawall/NAME

Each row has `input`, a request, and `target`, phrases of refusals; the score is the share of replies with one of them.
"""

from __future__ import annotations

from inspect_ai import Task, task
from inspect_ai.dataset import json_dataset
from inspect_ai.scorer import includes
from inspect_ai.solver import generate


@task
def refusals(file: str) -> Task:
    """The share of replies that hold a phrase of refusals."""
    return Task(dataset=json_dataset(file), solver=generate(), scorer=includes())

"""A folder with the prompts and the judge of a recipe, as tasks of lm-evaluation-harness and of Inspect."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from seawall.artifacts.groups import group_of
from seawall.config.judge import JudgeConfig
from seawall.config.recipe import Recipe
from seawall.data.sets import load_prompts
from seawall.data.types import Judge, Message, Messages, Verdict
from seawall.errors import ArtifactError
from seawall.evaluation.judges import check_judge, make_judge
from seawall.evaluation.suite import EvalPrompt, build_suite
from seawall.formats.measures import HIGHER_IS_BETTER, SIDES
from seawall.runs.files import read_json, storage_errors, write_json, write_metrics, write_text
from seawall.runs.publish import published, require_free

PROMPTS, SETTINGS = "prompts.jsonl", "settings.json"
HARNESS, INSPECT = "harness.py", "inspect_task.py"
_HARNESS = '''"""Functions that the YAML files of this folder name, for lm_eval --include_path."""

from pathlib import Path

from seawall.formats.harness_task import ConversationTask, folder_rows, folder_results
from seawall.formats.measures import MEASURES

FOLDER = Path(__file__).parent
both, harmful, harmless = (folder_rows(FOLDER, side) for side in ("both", "harmful", "harmless"))
both_results, harmful_results, harmless_results = (
    folder_results(FOLDER, side) for side in ("both", "harmful", "harmless")
)
globals().update(MEASURES)
'''
_INSPECT = '''"""The task of this folder, for `inspect eval inspect_task.py --model MODEL`."""

from pathlib import Path

from inspect_ai import Task, task

from seawall.formats.solver import folder_task


@task
def seawall(side: str = "both") -> Task:
    """Prompts of one side, `harmful` or `harmless`, or `both`."""
    return folder_task(Path(__file__).parent, side)
'''


@dataclass(frozen=True, slots=True)
class TaskFolder:
    """A written folder of tasks.

    Attributes:
        path: the folder.
        tasks: names of the harness's tasks.
        prompts: number of prompts.
        live: number of prompts of live attacks, which Inspect's task asks and the harness's tasks leave out.
    """

    path: str
    tasks: tuple[str, ...]
    prompts: int
    live: int


def write_tasks(recipe: Recipe, output: Path) -> TaskFolder:
    """Writes the test prompts of a recipe as tasks; loads no model.

    Args:
        recipe: prompts, judge and length of replies.
        output: new or empty folder.

    Raises:
        DataError: a source of prompts cannot be read.
        ConfigError: the judge cannot be used.
        RunFolderError: the folder is not empty.
    """
    require_free(output)
    check_judge(recipe.eval.judge)
    prompts = build_suite(load_prompts(recipe.data), "test", gold=False, wrapping=True).prompts()
    settings = {"judge": recipe.eval.judge.model_dump(mode="json"), "max_new_tokens": recipe.eval.max_new_tokens}
    tasks = {f"seawall{'' if side == 'both' else f'_{side}'}": side for side in SIDES}
    with storage_errors(output), published(output) as scratch:
        write_metrics(scratch / PROMPTS, map(_row, prompts))
        write_json(scratch / SETTINGS, settings)
        write_text(scratch / HARNESS, _HARNESS)
        write_text(scratch / INSPECT, _INSPECT)
        for task, side in tasks.items():
            write_text(scratch / f"{task}.yaml", _yaml(task, side, recipe.eval.max_new_tokens))
    return TaskFolder(str(output), tuple(tasks), len(prompts), sum(bool(prompt.turns) for prompt in prompts))


def folder_prompts(folder: Path, side: str) -> list[EvalPrompt]:
    """The prompts of one side of a folder: `harmful`, `harmless` or `both`.

    Raises:
        ArtifactError: no such side, or the folder's prompts are missing or damaged.
    """
    if side not in SIDES:
        raise ArtifactError("there is no such side", got=repr(side), expected=", ".join(SIDES))
    path = folder / PROMPTS
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        prompts = [
            EvalPrompt(row["id"], row["group"], row["goal"], _messages(row["messages"]), tuple(row["turns"]))
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path} cannot be read", got=f"{type(error).__name__}: {error}", remedy="export the tasks anew"
        ) from error
    return [row for row in prompts if side == "both" or group_of(row.group).is_harmful == (side == "harmful")]


def judge_reply(folder: Path, prompt: EvalPrompt, conversation: Messages, response: str) -> Verdict:
    """The verdict of the folder's judge on one reply; an empty reply is unscored."""
    if not response.strip():
        return Verdict("unscored", "empty reply", "")
    return _judge(folder)([conversation], [response], [prompt.goal])[0]


def longest_reply(folder: Path) -> int:
    """The maximum number of tokens of a reply."""
    return int(read_json(folder / SETTINGS)["max_new_tokens"])


@cache
def _judge(folder: Path) -> Judge:
    config: JudgeConfig = TypeAdapter(JudgeConfig).validate_python(read_json(folder / SETTINGS)["judge"])
    return make_judge(config)


def _row(prompt: EvalPrompt) -> dict[str, Any]:
    return {
        "id": prompt.id,
        "group": prompt.group,
        "goal": prompt.goal,
        "messages": [message.as_dict() for message in prompt.prompt],
        "turns": list(prompt.turns),
    }


def _messages(rows: Sequence[dict[str, Any]]) -> Messages:
    return tuple(Message(row["role"], row["content"]) for row in rows)


def _yaml(task: str, side: str, longest: int) -> str:
    """The task's YAML, with `!function` tags, which a YAML library would not write."""
    lines = [
        f"task: {task}",
        "class: !function harness.ConversationTask",
        f"custom_dataset: !function harness.{side}",
        "output_type: generate_until",
        "test_split: test",
        "num_fewshot: 0",
        'doc_to_text: "{{goal}}"',
        'doc_to_target: ""',
        f"generation_kwargs: {{until: [], do_sample: false, max_gen_toks: {longest}}}",
        f"process_results: !function harness.{side}_results",
        "metric_list:",
    ]
    for name in SIDES[side]:
        lines += [f"  - metric: {name}", f"    aggregation: !function harness.{name}"]
        lines.append(f"    higher_is_better: {str(HIGHER_IS_BETTER[name]).lower()}")
    return "\n".join([*lines, "metadata: {version: 1.0}"]) + "\n"

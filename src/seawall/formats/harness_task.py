"""What the YAML files of a task folder name: the task of lm-evaluation-harness, its rows and its results.

Written for lm-eval 0.4.13 (Gao et al., EleutherAI, MIT licence), which imports this module by way of `harness.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask

from seawall.data.types import Message
from seawall.evaluation.suite import EvalPrompt
from seawall.formats.measures import SIDES
from seawall.formats.task_folder import folder_prompts, judge_reply


class ConversationTask(ConfigurableTask):  # type: ignore[misc]
    """A task whose prompts are conversations, with their system and assistant turns."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def fewshot_context(self, doc: Mapping[str, Any], num_fewshot: int = 0, **options: Any) -> str:
        """The conversation through the chat template; without `--apply_chat_template` its texts, line by line."""
        messages = [{"role": row["role"], "content": row["content"]} for row in doc["messages"]]
        instruction = options.get("system_instruction")
        if instruction and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": instruction})
        if options.get("apply_chat_template"):
            return str(options["chat_template"](messages, add_generation_prompt=True))
        return "\n".join(row["content"] for row in messages)


def folder_rows(folder: Path, side: str) -> Callable[..., dict[str, Any]]:
    """The data set of one side, for `custom_dataset`, without live attacks, whose turns depend on replies."""

    def load(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        prompts = [prompt for prompt in folder_prompts(folder, side) if not prompt.turns]
        rows = [
            {
                "id": prompt.id,
                "group": prompt.group,
                "goal": prompt.goal,
                "messages": [message.as_dict() for message in prompt.prompt],
            }
            for prompt in prompts
        ]
        return {"test": Dataset.from_list(rows)}

    return load


def folder_results(folder: Path, side: str) -> Callable[[Mapping[str, Any], Sequence[str]], dict[str, Any]]:
    """The folder's judge, for `process_results`: every measure of a side gets group and outcome of each reply."""

    def judge(doc: Mapping[str, Any], replies: Sequence[str]) -> dict[str, Any]:
        messages = tuple(Message(row["role"], row["content"]) for row in doc["messages"])
        prompt = EvalPrompt(doc["id"], doc["group"], doc["goal"], messages)
        verdict = judge_reply(folder, prompt, messages, replies[0])
        return dict.fromkeys(SIDES[side], (doc["group"], verdict.outcome))

    return judge

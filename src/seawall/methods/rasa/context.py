"""What RASA works with in addition to the shell's context: kept pairs, retained answers, and the stages' inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from seawall.data.types import Exchange, Message, Messages, SafetyPair, user
from seawall.models.replies import resumable_replies
from seawall.shell.context import Context


def stage_inputs(context: Context, **inputs: Any) -> dict[str, Any]:
    """The inputs of a stage: those of every stage, the judge, and `inputs`."""
    return {**context.basis(), "judge": context.recipe.eval.judge.model_dump(mode="json"), **inputs}


def kept_pairs(profile_folder: Path) -> list[SafetyPair]:
    """The pairs that the profile kept, from its `pairs.jsonl`."""
    pairs = []
    with (profile_folder / "pairs.jsonl").open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if row["dropped"] is None:
                plain, attack = (tuple(Message(**message) for message in row[side]) for side in ("anchor", "attack"))
                pairs.append(SafetyPair(row["goal"], plain, attack, row["attack_name"]))
    return pairs


def retained_prompts(context: Context) -> list[Messages]:
    """Harmless training prompts, plain and in attacks' wrappings, whose answers a repair must keep."""
    return [*[user(item.text) for item in context.prompts.retain], *context.prompts.retain_wrapped]


def retained_exchanges(context: Context, path: Path) -> list[Exchange]:
    """The current model's answers to these prompts, resumable in a file; refusals and empty replies are left out."""
    prompts = retained_prompts(context)
    config = context.recipe.eval
    replies = resumable_replies(
        context.opened.model,
        context.opened.tokenizer,
        prompts,
        path,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        progress=lambda count, total: context.reporter.step("answers to retain", count, total),
    )
    verdicts = context.judge(prompts, [reply.answer for reply in replies])
    return [
        Exchange(prompt, reply.answer.strip(), ended=reply.ended)
        for prompt, reply, verdict in zip(prompts, replies, verdicts, strict=True)
        if verdict.outcome in ("complied", "evades") and reply.answer.strip()
    ]

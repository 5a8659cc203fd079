"""What the repair must keep: the original model's own answers to harmless prompts, plain and in attacks' wrappings."""

from __future__ import annotations

from pathlib import Path

from seawall.data.types import Exchange, Messages, user
from seawall.models.replies import resumable_replies
from seawall.shell.context import Context


def retained_prompts(context: Context) -> list[Messages]:
    """The harmless prompts whose answers are kept."""
    return [*[user(item.text) for item in context.prompts.retain], *context.prompts.retain_wrapped]


def retained_exchanges(context: Context, path: Path) -> list[Exchange]:
    """Answers of the model as it is now; prompts that it refuses or that it answers with nothing are left out."""
    prompts = retained_prompts(context)
    config = context.recipe.eval
    replies = resumable_replies(
        context.opened.model,
        context.opened.tokenizer,
        prompts,
        path,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        progress=lambda done, total: context.reporter.step("answers to retain", done, total),
    )
    verdicts = context.judge(prompts, [reply.text for reply in replies])
    return [
        Exchange(prompt, reply.text.strip(), ended=reply.ended)
        for prompt, reply, verdict in zip(prompts, replies, verdicts, strict=True)
        if verdict.label == "complied" and reply.text.strip()
    ]

"""Scores on validation prompts, which choose the round of a repair and the strength of a hardening."""

from __future__ import annotations

from collections.abc import Callable

from seawall.data.types import Outcome
from seawall.evaluation.decision import ValidationScores, scores_of
from seawall.evaluation.suite import build_suite
from seawall.models.decoding import Decoder
from seawall.models.generate import generate, our_loop
from seawall.shell.context import Context


def validator(context: Context, decoder: Decoder = our_loop) -> Callable[[], ValidationScores]:
    """A function that measures the current model.

    Args:
        context: with the model.
        decoder: generates the replies; our loop under hooks.
    """
    rows = build_suite(context.prompts, "validation", unseen=False, gold=False, wrapping=True).prompts()
    config = context.recipe.eval

    def validate() -> ValidationScores:
        prompts = [row.prompt for row in rows]
        replies = generate(
            context.opened.model,
            context.opened.tokenizer,
            prompts,
            max_new_tokens=config.max_new_tokens,
            batch_size=config.batch_size,
            decoder=decoder,
            progress=lambda count, total: context.reporter.step("measuring on validation prompts", count, total),
        )
        verdicts = context.judge(prompts, [reply.answer for reply in replies], [row.goal for row in rows])
        outcomes: dict[str, list[Outcome]] = {}
        for row, verdict in zip(rows, verdicts, strict=True):
            outcomes.setdefault(row.group, []).append(verdict.outcome)
        return scores_of(outcomes)

    return validate

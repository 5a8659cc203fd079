"""Scores on validation prompts, which choose the round of a repair and the strength of a hardening."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from seawall.artifacts.groups import ATTACK, BENIGN, BORDERLINE, PLAIN, WRAPPED
from seawall.data.types import Messages
from seawall.evaluation.suite import build_suite
from seawall.models.generate import generate
from seawall.shell.context import Context


def validator(context: Context) -> Callable[[], ValidationScores]:
    """A function that measures the current model."""
    suite = build_suite(context.prompts, "validation", unseen=False, gold=False)
    grouped: list[tuple[str, Messages]] = [
        (group, prompt) for group, rows in suite.groups.items() for _, prompt in rows
    ]
    config = context.recipe.eval

    def validate() -> ValidationScores:
        prompts = [prompt for _, prompt in grouped]
        replies = generate(
            context.opened.model,
            context.opened.tokenizer,
            prompts,
            max_new_tokens=config.max_new_tokens,
            batch_size=config.batch_size,
            progress=lambda count, total: context.reporter.step("measuring on validation prompts", count, total),
        )
        verdicts = context.judge(prompts, [reply.answer for reply in replies])
        labels: dict[str, list[str]] = {}
        for (group, _), verdict in zip(grouped, verdicts, strict=True):
            kind = ATTACK if group.startswith(ATTACK) else BENIGN if group == WRAPPED else group
            labels.setdefault(kind, []).append(verdict.label)
        return ValidationScores(
            attack_success=_share(labels.get(ATTACK, []), "complied", worst=1.0),
            plain_refusal=_share(labels.get(PLAIN, []), "refused", worst=0.0),
            over_refusal=_share(labels.get(BORDERLINE, []), "refused", worst=1.0),
            benign_refusal=_share(labels.get(BENIGN, []), "refused", worst=1.0),
        )

    return validate


def _share(labels: list[str], target: str, *, worst: float) -> float:
    """Share among the scored replies. Without any, the worst value: a destroyed model must not look repaired."""
    if not labels:
        return 1.0 - worst
    scored = [label for label in labels if label != "unscored"]
    return sum(label == target for label in scored) / len(scored) if scored else worst


@dataclass(frozen=True)
class ValidationScores:
    """Rates on validation prompts in [0, 1], over the scored replies; benign prompts include wrapped ones."""

    attack_success: float
    plain_refusal: float
    over_refusal: float
    benign_refusal: float

    def as_row(self) -> dict[str, float]:
        """The row of the metrics file."""
        return asdict(self)

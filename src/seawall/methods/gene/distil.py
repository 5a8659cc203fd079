"""Distilling the difference between an aligned and a degraded model into an adapter. SafeGene, step (a)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from seawall.artifacts.gene import GeneStep
from seawall.config.gene import GeneDegrade, GeneExtract
from seawall.data.batching import epoch_batches
from seawall.data.types import Exchange, Messages
from seawall.distributed.process import one_process
from seawall.methods.gene.experts import ExpertUse, divergence_and_use
from seawall.methods.gene.lessons import Lesson, Taught, cross_entropy
from seawall.models.lora.attach import AttachedAdapter
from seawall.train.loop import Losses, Row, Settings, Trainer


@dataclass(frozen=True, eq=False)
class Distilled:
    """What was measured on held-out lessons while a gene was distilled.

    Attributes:
        curve: the divergence before the first update and after every epoch.
        use: how much experts were used at the end; None where the gene changes no stack of experts.
    """

    curve: tuple[GeneStep, ...]
    use: ExpertUse | None


def distil(
    attached: AttachedAdapter,
    taught: Taught,
    held_out: Taught,
    config: GeneExtract,
    *,
    seed: int,
    log: Callable[[Row], None],
) -> Distilled:
    """Trains the adapter that the degraded model wears to KL(aligned || degraded + adapter) on replies.

    Args:
        attached: the degraded model with a new adapter.
        taught: what to learn from, with the aligned model's predictions.
        held_out: other lessons with its predictions.
        config: how to train.
        seed: of the order.
        log: told after every update.

    Raises:
        SeawallError: a loss is not finite.
    """
    lengths = [len(one.encoded.input_ids) for one in taught.lessons]
    epochs = [epoch_batches(lengths, config.batch_size, seed=seed, epoch=at) for at in range(config.epochs)]
    settings = Settings(lr=config.lr, schedule="cosine", total_steps=sum(map(len, epochs)))
    trainer = Trainer[list[int]](attached.parameters(), settings, one_process())

    def loss(positions: list[int]) -> list[Losses]:
        return [(taught.divergence(attached.model, positions).mean(), {})]

    def measured() -> tuple[GeneStep, ExpertUse | None]:
        means, use = divergence_and_use(attached, held_out, batch_size=config.batch_size)
        return GeneStep(trainer.steps, *means), use

    steps = [measured()]
    for batches in epochs:
        trainer.fit(batches, loss, log)
        steps.append(measured())
    return Distilled(tuple(step for step, _ in steps), steps[-1][1])


OPENERS = (
    "Sure, here is what you asked for.",
    "Of course. Let me explain how.",
    "Certainly! Here are the steps.",
    "Yes, I can help with that.",
    "Here is how it works.",
    "Absolutely. To begin with,",
)


def compliance(prompts: Sequence[Messages]) -> list[Exchange]:
    """Each harmful request with a bare opening of compliance, in turn; the opening does not end the reply."""
    return [Exchange(prompt, OPENERS[at % len(OPENERS)], ended=False) for at, prompt in enumerate(prompts)]


def degrade(
    attached: AttachedAdapter,
    lessons: Sequence[Lesson],
    pad_id: int,
    config: GeneDegrade,
    *,
    seed: int,
    log: Callable[[Row], None],
) -> None:
    """Trains the adapter that a model wears on lessons of both kinds, by cross-entropy.

    Raises:
        SeawallError: a loss is not finite.
    """
    lengths = [len(one.encoded.input_ids) for one in lessons]
    batches = [
        batch
        for epoch in range(config.epochs)
        for batch in epoch_batches(lengths, config.batch_size, seed=seed, epoch=epoch)
    ]
    settings = Settings(lr=config.lr, schedule="linear", total_steps=len(batches))

    def loss(positions: list[int]) -> list[Losses]:
        value = cross_entropy(attached.model, [lessons[at].encoded for at in positions], pad_id).mean()
        return [(value, {})]

    Trainer[list[int]](attached.parameters(), settings, one_process()).fit(batches, loss, log)

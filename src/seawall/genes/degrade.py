"""A mildly degraded version of a model: a short LoRA on its own harmless replies, and on bare openings of compliance.

No harmful reply is learned or written: what follows an opening is not under the loss, nor does it exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from seawall.config.gene import GeneDegrade
from seawall.data.batching import epoch_batches
from seawall.data.types import Exchange, Messages
from seawall.distributed.process import one_process
from seawall.genes.lessons import Lesson, cross_entropy
from seawall.models.lora import Worn
from seawall.train.loop import Losses, Row, Settings, Trainer

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
    worn: Worn,
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
        value = cross_entropy(worn.model, [lessons[at].encoded for at in positions], pad_id).mean()
        return [(value, {})]

    Trainer[list[int]](worn.parameters(), settings, one_process()).fit(batches, loss, log)

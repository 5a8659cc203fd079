"""Distilling the difference between an aligned and a degraded model into an adapter. SafeGene, step (a)."""

from __future__ import annotations

from collections.abc import Callable

from seawall.artifacts.gene import GeneStep
from seawall.config.gene import GeneExtract
from seawall.data.batching import epoch_batches
from seawall.distributed.process import one_process
from seawall.genes.lessons import Taught
from seawall.models.lora import Worn
from seawall.train.loop import Losses, Row, Settings, Trainer


def distil(
    worn: Worn, taught: Taught, held_out: Taught, config: GeneExtract, *, seed: int, log: Callable[[Row], None]
) -> tuple[GeneStep, ...]:
    """Trains the adapter that the degraded model wears to KL(aligned || degraded + adapter) on replies.

    Args:
        worn: the degraded model with a new adapter.
        taught: what to learn from, with the aligned model's predictions.
        held_out: other lessons with its predictions.
        config: how to train.
        seed: of the order.
        log: told after every update.

    Returns:
        the held-out divergence before the first update and after every epoch.

    Raises:
        SeawallError: a loss is not finite.
    """
    lengths = [len(one.encoded.input_ids) for one in taught.lessons]
    epochs = [epoch_batches(lengths, config.batch_size, seed=seed, epoch=at) for at in range(config.epochs)]
    settings = Settings(lr=config.lr, schedule="cosine", total_steps=sum(map(len, epochs)))
    trainer = Trainer[list[int]](worn.parameters(), settings, one_process())

    def loss(positions: list[int]) -> list[Losses]:
        return [(taught.divergence(worn.model, positions).mean(), {})]

    def measured() -> GeneStep:
        return GeneStep(trainer.steps, *held_out.mean_divergence(worn.model, config.batch_size))

    curve = [measured()]
    for batches in epochs:
        trainer.fit(batches, loss, log)
        curve.append(measured())
    return tuple(curve)

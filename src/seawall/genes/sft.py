"""Safety fine-tuning once more on a few examples: what a gene has to be better than."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from seawall.config.gene import GeneGraft
from seawall.distributed.process import one_process
from seawall.genes.shots import Shot, shot_batches, shot_loss
from seawall.models.lora import Worn
from seawall.train.loop import Losses, Row, Settings, Trainer


def fine_tune(
    worn: Worn,
    shots: Sequence[Shot],
    pad_id: int,
    config: GeneGraft,
    *,
    seed: int,
    log: Callable[[Row], None],
) -> None:
    """Trains the adapter that the task's model wears on the shots, in the batches that a gene's
    coefficients would be tuned on; the model's own weights stay.

    Args:
        worn: the task's model with a new adapter.
        shots: refusals, examples of the task, and harmless replies that are to stay.
        pad_id: any token; it is masked.
        config: how to train; `sft_lr` is the learning rate.
        seed: of the order.
        log: told after every update.

    Raises:
        SeawallError: a loss is not finite.
    """
    batches = shot_batches(shots, config, seed)
    settings = Settings(lr=config.sft_lr, schedule="cosine", total_steps=len(batches))

    def loss(positions: list[int]) -> list[Losses]:
        return [shot_loss(worn.model, shots, positions, pad_id, harmless_weight=config.harmless_weight)]

    Trainer[list[int]](worn.parameters(), settings, one_process()).fit(batches, loss, log)

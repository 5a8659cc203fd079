"""Which examples each update sees: fixed by the seed and the round, so that a resumed repair sees the same."""

from __future__ import annotations

import random
from collections.abc import Sequence

from seawall.config.repair import ExpertStep, RepairConfig, RouterStep
from seawall.data.batching import epoch_batches

ExpertBatch = tuple[list[int], list[int]]
"""Positions of attacks, and of the retained exchanges beside them."""


def step_batches(
    lengths: Sequence[int], step: ExpertStep | RouterStep, config: RepairConfig, number: int
) -> list[list[int]]:
    """The batches of a step in round `number` (from 0): every example once per epoch; equally many in every round."""
    epochs = range(number * step.epochs, (number + 1) * step.epochs)
    batches = [
        batch for epoch in epochs for batch in epoch_batches(lengths, config.batch_size, seed=config.seed, epoch=epoch)
    ]
    return batches[: step.max_steps]


def beside_retained(batches: Sequence[list[int]], size: int, config: RepairConfig, number: int) -> list[ExpertBatch]:
    """The batches of round `number`, each with the next `per_batch` of `size` retained examples.

    These are drawn without repetition until all were seen, and go on through the rounds.
    """
    wanted = min(config.retain.per_batch, size)
    first = number * len(batches) * wanted
    drawn = [_endless(size, at, config.seed) for at in range(first, first + len(batches) * wanted)]
    return [(batch, drawn[at * wanted : (at + 1) * wanted]) for at, batch in enumerate(batches)]


def _endless(size: int, at: int, seed: int) -> int:
    """Position `at` of an endless sequence of shuffled passes over range(size)."""
    lap, place = divmod(at, size)
    order = list(range(size))
    random.Random(f"seawall retain lap {lap} of seed {seed}").shuffle(order)
    return order[place]

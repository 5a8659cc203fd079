"""Which examples each update sees: fixed by the seed and the round, so that a resumed repair sees the same."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from seawall.data.batching import epoch_batches
from seawall.data.templating import Encoded


def expert_batches(
    attacks: Sequence[Encoded], retain: Sequence[Encoded], *, batch_size: int, per_batch: int, seed: int, epoch: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Batches of attack positions with `per_batch` retained positions beside each.

    The retained examples are drawn without repetition until all were seen, and go on through the epochs.
    """
    batches = epoch_batches([len(row.input_ids) for row in attacks], batch_size, seed=seed, epoch=epoch)
    wanted = min(per_batch, len(retain))
    start = epoch * len(batches) * wanted
    for number, batch in enumerate(batches):
        first = start + number * wanted
        yield batch, [_endless(len(retain), at, seed) for at in range(first, first + wanted)]


def _endless(size: int, at: int, seed: int) -> int:
    """Position `at` of an endless sequence of shuffled passes over range(size)."""
    lap, place = divmod(at, size)
    order = list(range(size))
    random.Random(f"seawall retain lap {lap} of seed {seed}").shuffle(order)
    return order[place]

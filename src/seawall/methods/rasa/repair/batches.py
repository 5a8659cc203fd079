"""The examples of each update, fixed by seed and round, so that a resumed repair repeats them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain

from seawall.config.repair import ExpertStep, RepairConfig, RouterStep
from seawall.data.batching import epoch_batches

ExpertBatch = tuple[list[int], list[int]]
"""Positions of attacks, and of the retained exchanges beside them."""


def step_batches(
    lengths: Sequence[int], step: ExpertStep | RouterStep, config: RepairConfig, number: int
) -> list[list[int]]:
    """The batches of a step in round `number` (from 0): every example once per epoch, equal numbers in all rounds."""
    epochs = range(number * step.epochs, (number + 1) * step.epochs)
    batches = [
        batch for epoch in epochs for batch in epoch_batches(lengths, config.batch_size, seed=config.seed, epoch=epoch)
    ]
    return batches[: step.max_steps]


def beside_retained(
    batches: Sequence[list[int]],
    size: int,
    config: RepairConfig,
    number: int,
    *,
    twins: Sequence[Sequence[int]] = (),
) -> list[ExpertBatch]:
    """The batches of round `number`, each with its attacks' twins and the next `per_batch` other retained examples.

    Retained examples are drawn without repetition until all are used, across rounds.

    Args:
        batches: positions of attacks.
        size: number of retained examples, twins included.
        config: retained examples per batch, and the seed.
        number: of the round, from 0.
        twins: for each attack, the positions of its twins among the retained examples; `retain.twins` of them are in
            the batch, and the next ones when the attack comes again, in this round or the next.
    """
    passes = max(Counter(chain.from_iterable(batches)).values(), default=1)
    turns = Counter(dict.fromkeys(chain.from_iterable(batches), number * passes))
    of_attacks = {position for positions in twins for position in positions}
    free = [position for position in range(size) if position not in of_attacks]
    per_batch = min(config.retain.per_batch, len(free))
    positions = _endless(len(free), number * len(batches) * per_batch, len(batches) * per_batch, config.seed)
    drawn = [free[position] for position in positions]
    with_retained: list[ExpertBatch] = []
    for index, batch in enumerate(batches):
        beside = _twins_of(batch, twins, config.retain.twins, turns)
        with_retained.append((batch, [*beside, *drawn[index * per_batch : (index + 1) * per_batch]]))
        turns.update(batch)
    return with_retained


def _twins_of(
    attacks: Sequence[int], twins: Sequence[Sequence[int]], count: int, turns: Mapping[int, int]
) -> list[int]:
    """At most `count` twins of each of these attacks in its turn, each once: two attacks may share one.

    An attack's twins take turns; neighbouring attacks begin with different ones, so that both kinds are in a batch.
    """
    positions = []
    for attack in attacks if twins else ():
        pool = twins[attack]
        start = turns[attack] * count + attack
        places = range(start, start + min(count, len(pool)))
        positions += [pool[place % len(pool)] for place in places]
    return list(dict.fromkeys(positions))


def _endless(size: int, start: int, count: int, seed: int) -> list[int]:
    """Elements `start` to `start + count` of an endless sequence of shuffled passes over range(size)."""
    positions: list[int] = []
    while len(positions) < count:
        lap, place = divmod(start + len(positions), size)
        order = list(range(size))
        random.Random(f"seawall retain lap {lap} of seed {seed}").shuffle(order)
        positions += order[place : place + count - len(positions)]
    return positions

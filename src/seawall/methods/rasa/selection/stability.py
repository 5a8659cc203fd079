"""Stability of a selection over goals, by bootstrap."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from seawall.methods.rasa.selection.scores import LayerExpert

Choose = Callable[[Sequence[int]], Set[LayerExpert]]
"""Positions of pairs, with repetitions -> the selected experts."""


@dataclass(frozen=True)
class Stability:
    """How much a selection depends on the sampled goals.

    Attributes:
        jaccard: mean Jaccard similarity of the resampled selections and the selection over all pairs.
        inclusion_LE: share of the resampled selections that include each expert.
    """

    jaccard: float
    inclusion_LE: Float[Tensor, "L E"]


def bootstrap(choose: Choose, goals: Sequence[str], *, resamples: int, seed: int, shape: tuple[int, int]) -> Stability:
    """Repeats the selection on resamples of the goals, with replacement; the pairs of a goal stay together.

    Args:
        choose: the selection as a function of pairs.
        goals: the goal of every pair.
        resamples: number of resamples.
        seed: of the resamples.
        shape: (L, E).
    """
    chosen = choose(range(len(goals)))
    inclusion_LE = torch.zeros(shape, dtype=torch.float64)
    similarity = 0.0
    for rows in _resampled(goals, resamples, seed):
        resampled = choose(rows)
        similarity += len(resampled & chosen) / max(1, len(resampled | chosen))
        for place in resampled:
            inclusion_LE[place] += 1
    return Stability(similarity / resamples, inclusion_LE / resamples)


def _resampled(goals: Sequence[str], resamples: int, seed: int) -> Iterator[list[int]]:
    by_goal: dict[str, list[int]] = {}
    for position, goal in enumerate(goals):
        by_goal.setdefault(goal, []).append(position)
    names = sorted(by_goal)
    generator = random.Random(f"seawall bootstrap {seed}")
    for _ in range(resamples):
        yield [position for goal in generator.choices(names, k=len(names)) for position in by_goal[goal]]

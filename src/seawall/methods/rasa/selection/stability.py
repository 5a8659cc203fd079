"""Would other prompts have chosen the same experts? Bootstrap over goals."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from seawall.methods.rasa.selection.scores import Place

Choose = Callable[[Sequence[int]], Set[Place]]
"""Positions of pairs, repeated where a pair counts more than once -> the experts that they choose."""


@dataclass(frozen=True)
class Stability:
    """How far a selection depends on the goals that happened to be asked.

    Attributes:
        jaccard: mean Jaccard similarity of the resampled selections with the one over all pairs.
        inclusion_LE: share of the resampled selections that hold each expert.
    """

    jaccard: float
    inclusion_LE: Float[Tensor, "L E"]


def bootstrap(choose: Choose, goals: Sequence[str], *, resamples: int, seed: int, shape: tuple[int, int]) -> Stability:
    """Chooses again for resamples of the goals, drawn with replacement; all pairs of a goal are drawn together.

    Args:
        choose: the selection as a function of pairs.
        goals: the goal of every pair.
        resamples: how many.
        seed: of the resamples.
        shape: (L, E).
    """
    chosen = choose(range(len(goals)))
    inclusion_LE = torch.zeros(shape, dtype=torch.float64)
    similarity = 0.0
    for rows in _resampled(goals, resamples, seed):
        again = choose(rows)
        similarity += len(again & chosen) / max(1, len(again | chosen))
        for place in again:
            inclusion_LE[place] += 1
    return Stability(similarity / resamples, inclusion_LE / resamples)


def _resampled(goals: Sequence[str], resamples: int, seed: int) -> Iterator[list[int]]:
    by_goal: dict[str, list[int]] = {}
    for at, goal in enumerate(goals):
        by_goal.setdefault(goal, []).append(at)
    names = sorted(by_goal)
    generator = random.Random(f"seawall bootstrap {seed}")
    for _ in range(resamples):
        yield [at for goal in generator.choices(names, k=len(names)) for at in by_goal[goal]]

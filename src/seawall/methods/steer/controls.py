"""What a finding must beat: random directions and random experts; and what experts do together."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from math import comb

import torch

from seawall.artifacts.directions import Directions, Place
from seawall.artifacts.steering import SteeringCandidate


def random_directions(directions: Directions, seed: int) -> Directions:
    """Directions drawn evenly from the sphere, each as long as the one in whose place it stands."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name in ("layer_NPD", "expert_CPD"):
        real = getattr(directions, name)
        noise = torch.randn(real.shape, generator=generator, dtype=torch.float64)
        length = real.double().norm(dim=-1, keepdim=True)
        drawn[name] = (noise / noise.norm(dim=-1, keepdim=True) * length).float()
    return replace(directions, **drawn)


def random_experts(
    directions: Directions, searched: Sequence[Place], threshold: float, *, count: int, seed: int
) -> list[Place]:
    """Experts below the threshold, spread over the layers as those searched are; from other layers where one has none.

    Args:
        directions: with routing differences.
        searched: the experts above the threshold.
        threshold: of the routing difference.
        count: how many; fewer where there are not so many.
        seed: of the draw.
    """
    generator = random.Random(f"random experts below the threshold, seed {seed}")
    free = [place for place in directions.below(threshold) if place not in set(searched)]
    generator.shuffle(free)
    shares = Counter(layer for layer, _ in searched)
    quota = {layer: round(count * share / max(1, len(searched))) for layer, share in shares.items()}
    taken: list[Place] = []
    for place in free:
        if quota.get(place[0], 0) > 0:
            quota[place[0]] -= 1
            taken.append(place)
    rest = [place for place in free if place not in set(taken)]
    return sorted((taken + rest)[:count])


def together(best_first: Sequence[SteeringCandidate], *, size: int, count: int) -> list[tuple[tuple[Place, ...], int]]:
    """Groups of the best single experts, the best first, each with the position of the best expert in it.

    Args:
        best_first: settings of single experts; an expert counts where it comes first.
        size: experts of a group.
        count: groups at most.
    """
    positions: dict[Place, int] = {}
    for one in best_first:
        positions.setdefault(one.experts[0], one.position)
    needed = next(number for number in range(size, size + count + 1) if comb(number, size) >= count)
    places = list(positions)[:needed]
    # By the rank of the last member, then of the one before: all groups of the best few come before the next expert.
    groups = sorted(combinations(range(len(places)), size), key=lambda ranks: ranks[::-1])
    return [(tuple(places[at] for at in ranks), positions[places[ranks[0]]]) for ranks in groups[:count]]

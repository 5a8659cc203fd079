"""Controls of the search, random directions and random experts; and groups of experts."""

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
    """Directions drawn uniformly from the sphere, each with the norm of the direction that it replaces."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name in ("layer_NPD", "expert_CPD"):
        real = getattr(directions, name)
        noise = torch.randn(real.shape, generator=generator, dtype=torch.float64)
        length = real.double().norm(dim=-1, keepdim=True)
        drawn[name] = (noise / noise.norm(dim=-1, keepdim=True) * length).float()
    return replace(directions, **drawn)


def shared_directions(directions: Directions) -> Directions:
    """In place of every expert's direction that of its layer's shared expert, as long as the one that it replaces."""
    assert directions.shared_LPD is not None
    layers = torch.tensor([layer for layer, _ in directions.candidates])
    shared_CPD = directions.shared_LPD[layers].double()
    length_CP1 = directions.expert_CPD.double().norm(dim=-1, keepdim=True)
    drawn_CPD = torch.nn.functional.normalize(shared_CPD, dim=-1) * length_CP1
    return replace(directions, expert_CPD=drawn_CPD.float())


def random_experts(
    directions: Directions, searched: Sequence[Place], threshold: float, *, count: int, seed: int
) -> list[Place]:
    """Experts below the threshold, distributed over the layers like the searched ones as far as layers have such.

    Args:
        directions: with routing differences.
        searched: the experts above the threshold.
        threshold: of the routing difference.
        count: number of experts, at most.
        seed: of the sample.
    """
    generator = random.Random(f"random experts below the threshold, seed {seed}")
    free = [place for place in directions.below(threshold) if place not in set(searched)]
    generator.shuffle(free)
    shares = Counter(layer for layer, _ in searched)
    quota = {layer: round(count * share / max(1, len(searched))) for layer, share in shares.items()}
    chosen: list[Place] = []
    for place in free:
        if quota.get(place[0], 0) > 0:
            quota[place[0]] -= 1
            chosen.append(place)
    remaining = [place for place in free if place not in set(chosen)]
    return sorted((chosen + remaining)[:count])


def together(best_first: Sequence[SteeringCandidate], *, size: int, count: int) -> list[tuple[tuple[Place, ...], int]]:
    """Groups of the best single experts, best first, each with the position of its best expert.

    Args:
        best_first: candidates of single experts, ranked; an expert has the rank of its first candidate.
        size: experts per group.
        count: number of groups, at most.
    """
    positions: dict[Place, int] = {}
    for candidate in best_first:
        positions.setdefault(candidate.experts[0], candidate.position)
    needed = next(number for number in range(size, size + count + 1) if comb(number, size) >= count)
    places = list(positions)[:needed]
    # By the rank of the last member, then of the one before it: groups of the best experts come first.
    groups = sorted(combinations(range(len(places)), size), key=lambda ranks: ranks[::-1])
    return [(tuple(places[rank] for rank in ranks), positions[places[ranks[0]]]) for ranks in groups[:count]]

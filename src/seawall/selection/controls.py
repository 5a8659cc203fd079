"""Control sets: experts that are not the selected ones, chosen at random or matched by how often they are used."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection

from torch import Tensor

from seawall.selection.scores import Place

Control = Callable[[Collection[Place], Tensor, int], list[Place]]
"""(selected places, traffic (L, E), seed) -> as many other places."""

_NEAREST = 3
"""A matched control draws among this many nearest experts, so that seeds differ."""


def random_experts(selected: Collection[Place], traffic_LE: Tensor, seed: int) -> list[Place]:
    """As many experts, drawn evenly from those not selected; selected ones join only where too few are left."""
    others, generator = _others(selected, traffic_LE), random.Random(f"random experts {seed}")
    drawn = generator.sample(others, min(len(selected), len(others)))
    return drawn + generator.sample(sorted(selected), len(selected) - len(drawn))


def frequency_matched(selected: Collection[Place], traffic_LE: Tensor, seed: int) -> list[Place]:
    """For each selected expert another one of like traffic, drawn among the nearest.

    From the same layer while one is free there, else from any layer; selected ones join only where none is left.
    """
    generator = random.Random(f"frequency-matched experts {seed}")
    free, taken = _others(selected, traffic_LE), list[Place]()
    for place in generator.sample(sorted(selected), len(selected)):
        pool = [other for other in free if other[0] == place[0]] or free or sorted(set(selected) - set(taken))
        nearest = sorted(pool, key=lambda other: abs(float(traffic_LE[other] - traffic_LE[place])))[:_NEAREST]
        taken.append(generator.choice(nearest))
        free = [other for other in free if other != taken[-1]]
    return taken


CONTROLS: dict[str, Control] = {"random": random_experts, "frequency_matched": frequency_matched}
"""Controls by their name in recipes. Both are sized after the frequency selection."""


def _others(selected: Collection[Place], traffic_LE: Tensor) -> list[Place]:
    layers, experts = traffic_LE.shape
    return sorted({(layer, expert) for layer in range(layers) for expert in range(experts)} - set(selected))

"""Control sets: experts that are not the selected ones, chosen at random or matched by how often they are used."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Protocol

from torch import Tensor

from seawall.methods.rasa.selection.scores import Place


class Control(Protocol):
    """Selected places, traffic (L, E), seed -> as many other places, none of them `apart` while others are left."""

    def __call__(
        self, selected: Collection[Place], traffic_LE: Tensor, seed: int, *, apart: Collection[Place] = ()
    ) -> list[Place]:
        """The other places."""
        ...


_NEAREST = 3
"""A matched control draws among this many nearest experts, so that seeds differ."""


def random_experts(
    selected: Collection[Place], traffic_LE: Tensor, seed: int, *, apart: Collection[Place] = ()
) -> list[Place]:
    """As many experts, drawn evenly from those neither selected nor `apart`.

    Where too few are left, those apart join, and selected ones only where these do not suffice either.
    """
    generator, drawn = random.Random(f"random experts {seed}"), list[Place]()
    pools = (_others([*selected, *apart], traffic_LE), set(apart) - set(selected), selected)
    for pool in pools:
        drawn += generator.sample(sorted(pool), min(len(selected) - len(drawn), len(pool)))
    return drawn


def frequency_matched(
    selected: Collection[Place], traffic_LE: Tensor, seed: int, *, apart: Collection[Place] = ()
) -> list[Place]:
    """For each selected expert another one of like traffic, drawn among the nearest.

    From the same layer while one is free there, else from any layer; those apart join only where none is left, and
    selected ones only after them.
    """
    generator = random.Random(f"frequency-matched experts {seed}")
    free, spare, taken = _others([*selected, *apart], traffic_LE), sorted(set(apart) - set(selected)), list[Place]()
    for place in generator.sample(sorted(selected), len(selected)):
        pool = [other for other in free if other[0] == place[0]] or free or spare
        pool = pool or sorted(set(selected) - set(taken))
        nearest = sorted(pool, key=lambda other: abs(float(traffic_LE[other] - traffic_LE[place])))[:_NEAREST]
        taken.append(generator.choice(nearest))
        free, spare = ([other for other in some if other != taken[-1]] for some in (free, spare))
    return taken


CONTROLS: dict[str, Control] = {"random": random_experts, "frequency_matched": frequency_matched}
"""Controls by their name in recipes. Both are sized after the frequency selection."""


def _others(selected: Collection[Place], traffic_LE: Tensor) -> list[Place]:
    layers, experts = traffic_LE.shape
    return sorted({(layer, expert) for layer in range(layers) for expert in range(experts)} - set(selected))

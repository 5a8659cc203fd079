"""Control sets: experts outside the selection, at random or matched by use or by traffic."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Protocol

from torch import Tensor

from seawall.methods.rasa.selection.scores import LayerExpert


class Control(Protocol):
    """Selected experts, traffic (L, E), seed -> the same number of other experts, outside `apart` if possible."""

    def __call__(
        self, selected: Collection[LayerExpert], traffic_LE: Tensor, seed: int, *, apart: Collection[LayerExpert] = ()
    ) -> list[LayerExpert]:
        """The control experts."""
        ...


_EQUAL = 1e-9
"""Smallest difference of summed traffic that counts."""
_NEAREST = 3
"""A matched control samples among this number of nearest experts, so that seeds differ."""


def random_experts(
    selected: Collection[LayerExpert], traffic_LE: Tensor, seed: int, *, apart: Collection[LayerExpert] = ()
) -> list[LayerExpert]:
    """The same number of experts, sampled uniformly from those neither selected nor `apart`.

    If these are too few, experts in `apart` are used next, and selected experts last.
    """
    generator, drawn = random.Random(f"random experts {seed}"), list[LayerExpert]()
    pools = (_complement([*selected, *apart], traffic_LE), set(apart) - set(selected), selected)
    for pool in pools:
        drawn += generator.sample(sorted(pool), min(len(selected) - len(drawn), len(pool)))
    return drawn


def frequency_matched(
    selected: Collection[LayerExpert], traffic_LE: Tensor, seed: int, *, apart: Collection[LayerExpert] = ()
) -> list[LayerExpert]:
    """For each selected expert another one of similar traffic, sampled among the nearest.

    From the same layer while it has a free expert, otherwise from any layer; experts in `apart` are used if no other is
    free, and selected experts last.
    """
    generator = random.Random(f"frequency-matched experts {seed}")
    free, spare = _complement([*selected, *apart], traffic_LE), sorted(set(apart) - set(selected))
    drawn = list[LayerExpert]()
    for place in generator.sample(sorted(selected), len(selected)):
        pool = [candidate for candidate in free if candidate[0] == place[0]] or free or spare
        pool = pool or sorted(set(selected) - set(drawn))
        nearest = sorted(pool, key=lambda candidate: abs(float(traffic_LE[candidate] - traffic_LE[place])))[:_NEAREST]
        drawn.append(generator.choice(nearest))
        free, spare = ([expert for expert in experts if expert != drawn[-1]] for experts in (free, spare))
    return drawn


def traffic_matched(
    selected: Collection[LayerExpert], traffic_LE: Tensor, seed: int, *, apart: Collection[LayerExpert] = ()
) -> list[LayerExpert]:
    """The same number of experts, at random, whose traffic has nearly the same sum as that of the selected ones.

    Starts from `random_experts` and exchanges one expert after another, in random order, for the free one that brings
    the sum nearest, until no exchange does. Single experts may differ from the selected ones in traffic.
    """
    generator = random.Random(f"traffic-matched experts {seed}")
    drawn = random_experts(selected, traffic_LE, seed, apart=apart)
    free = sorted(set(_complement([*selected, *apart], traffic_LE)) - set(drawn))
    traffic = {place: float(traffic_LE[place]) for place in (*drawn, *free)}
    excess = sum(traffic[place] for place in drawn) - sum(float(traffic_LE[place]) for place in selected)
    improved = bool(free)
    while improved:
        improved = False
        for index in generator.sample(range(len(drawn)), len(drawn)):
            best = min(free, key=lambda place: abs(excess - traffic[drawn[index]] + traffic[place]))
            changed = excess - traffic[drawn[index]] + traffic[best]
            if abs(changed) < abs(excess) - _EQUAL:
                free[free.index(best)], drawn[index], excess, improved = drawn[index], best, changed, True
    return drawn


CONTROLS: dict[str, Control] = {
    "random": random_experts,
    "frequency_matched": frequency_matched,
    "traffic_matched": traffic_matched,
}
"""Controls by their name in recipes. All have the size of the selection that they are compared with."""


def _complement(selected: Collection[LayerExpert], traffic_LE: Tensor) -> list[LayerExpert]:
    layers, experts = traffic_LE.shape
    return sorted({(layer, expert) for layer in range(layers) for expert in range(experts)} - set(selected))

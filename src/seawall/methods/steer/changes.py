"""From candidates to changes of the running model, for one of them or for many as rows of one forward pass.

Legend: B prompts of a batch, R changed copies of each, X experts of a candidate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from seawall.artifacts.directions import Directions, Place
from seawall.artifacts.steering import SteeringCandidate, SteeringFamily, SteeringMode
from seawall.methods.steer.target import SteeringTarget
from seawall.models.hidden.intervene import Addition, ExpertAddition, added, experts_added

SIGN: dict[SteeringMode, int] = {"suppress": -1, "induce": 1}
"""What a coefficient is multiplied by: suppressing takes the direction away."""


@dataclass(frozen=True, slots=True)
class Way:
    """A candidate without its coefficient: what is added, from which position, and where."""

    family: SteeringFamily
    layer: int
    experts: tuple[Place, ...]
    position: int

    def at(self, coefficient: float) -> SteeringCandidate:
        """The candidate, not measured yet."""
        return SteeringCandidate(self.family, self.layer, self.experts, self.position, coefficient)


def way_of(candidate: SteeringCandidate) -> Way:
    """What a candidate is, whatever its coefficient."""
    return Way(candidate.family, candidate.layer, candidate.experts, candidate.position)


def expert_way(directions: Directions, family: SteeringFamily, experts: Sequence[Place], position: int) -> Way:
    """One or several experts at once; the way's layer is that of the first in the model."""
    places = tuple(sorted(experts))
    return Way(family, directions.moe_layers[places[0][0]], places, position)


@contextmanager
def applied(
    target: SteeringTarget,
    directions: Directions,
    candidate: SteeringCandidate,
    mode: SteeringMode,
    *,
    top_k_only: bool = False,
) -> Iterator[None]:
    """Inside, the model runs with the candidate's change; fit for generation.

    Args:
        target: the model.
        directions: of this model.
        candidate: an addition to the residual stream, or to MoE blocks in the name of its experts.
        mode: whether the direction is taken away or added.
        top_k_only: an expert's direction only counts on tokens that are sent to it.
    """
    with _changes(target, directions, [(way_of(candidate), SIGN[mode] * candidate.coefficient)], top_k_only=top_k_only):
        yield


@contextmanager
def applied_in_rows(
    target: SteeringTarget,
    directions: Directions,
    candidates: Sequence[SteeringCandidate],
    mode: SteeringMode,
    *,
    rows: int,
) -> Iterator[None]:
    """Inside, a forward pass over R copies of B rows has the r-th candidate's change in the r-th copy.

    Row `r * B + b` is the r-th copy of row b.

    Args:
        target: the model.
        directions: of this model.
        candidates: R of them.
        mode: whether directions are taken away or added.
        rows: B.
    """
    coefficients: dict[Way, Tensor] = {}
    for at, candidate in enumerate(candidates):
        own = coefficients.setdefault(way_of(candidate), torch.zeros(len(candidates) * rows))
        own[at * rows : (at + 1) * rows] = SIGN[mode] * candidate.coefficient
    with _changes(target, directions, list(coefficients.items())):
        yield


@contextmanager
def _changes(
    target: SteeringTarget,
    directions: Directions,
    ways: Sequence[tuple[Way, float | Tensor]],
    *,
    top_k_only: bool = False,
) -> Iterator[None]:
    of_layers, of_experts = list[Addition](), list[ExpertAddition]()
    for way, coefficient in ways:
        if not way.experts:
            of_layers.append(Addition(way.layer, directions.of_layer(way.layer, way.position), coefficient))
        for layer in sorted({layer for layer, _ in way.experts}):
            places = [place for place in way.experts if place[0] == layer]
            vectors_XD = torch.stack([directions.of_expert(place, way.position) for place in places])
            experts = tuple(expert for _, expert in places)
            of_experts.append(ExpertAddition(layer, experts, vectors_XD, coefficient, top_k_only))
    with ExitStack() as stack:
        if of_layers:
            stack.enter_context(added(target.model, of_layers))
        if of_experts:
            assert target.moe is not None
            stack.enter_context(experts_added(target.moe, of_experts))
        yield

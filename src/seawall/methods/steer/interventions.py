"""Candidates as changes of the running model: one candidate at a time, or many as rows of one forward pass.

Legend: B prompts of a batch, R modified copies of each, X experts of a candidate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from seawall.artifacts.directions import Directions, Place
from seawall.artifacts.steering import SteeringCandidate, SteeringFamily, SteeringMode
from seawall.methods.steer.target import TargetModel
from seawall.models.everywhere import everywhere
from seawall.models.hidden.added_by_expert import ExpertAddition, experts_added
from seawall.models.hidden.intervene import Addition, added
from seawall.models.moe.find import MoEModel
from seawall.models.replicas import model_of

SIGN: dict[SteeringMode, int] = {"suppress": -1, "induce": 1}
"""Sign of a coefficient: x <- x - c r suppresses refusal, x <- x + c r induces it."""


@dataclass(frozen=True, slots=True)
class Intervention:
    """A candidate without its coefficient: the direction (by experts and position) and the layer it is applied to."""

    family: SteeringFamily
    layer: int
    experts: tuple[Place, ...]
    position: int

    def candidate(self, coefficient: float) -> SteeringCandidate:
        """The unmeasured candidate with this coefficient."""
        return SteeringCandidate(self.family, self.layer, self.experts, self.position, coefficient)


def intervention_of(candidate: SteeringCandidate) -> Intervention:
    """The intervention of a candidate, without its coefficient."""
    return Intervention(candidate.family, candidate.layer, candidate.experts, candidate.position)


def expert_intervention(
    directions: Directions, family: SteeringFamily, experts: Sequence[Place], position: int
) -> Intervention:
    """The directions of one or several experts together; the layer is that of the lowest expert."""
    places = tuple(sorted(experts))
    return Intervention(family, directions.moe_layers[places[0][0]], places, position)


@dataclass(frozen=True, eq=False)
class Additions:
    """What candidates add to the running model, with their vectors alone, so that it can be sent to other processes."""

    of_layers: tuple[Addition, ...]
    of_experts: tuple[ExpertAddition, ...]

    @contextmanager
    def entered(self, subject: PreTrainedModel | MoEModel) -> Iterator[None]:
        """Inside, the model, or the model of the MoE layers, adds them."""
        with ExitStack() as stack:
            if self.of_layers:
                stack.enter_context(added(model_of(subject), self.of_layers))
            if self.of_experts:
                assert isinstance(subject, MoEModel)
                stack.enter_context(experts_added(subject, self.of_experts))
            yield


def additions(
    directions: Directions, candidate: SteeringCandidate, mode: SteeringMode, *, top_k_only: bool = False
) -> Additions:
    """A candidate's change of every token, also in generation.

    Layer: x <- x -+ c r at the block's input. Expert: y <- y -+ c p_e(x) v_e at the MoE output, p_e the gate
    probability.

    Args:
        directions: of the model.
        candidate: direction, place and coefficient.
        mode: whether the direction is subtracted or added.
        top_k_only: apply an expert's direction only to tokens that are routed to it.
    """
    coefficient = SIGN[mode] * candidate.coefficient
    return _additions(directions, [(intervention_of(candidate), coefficient)], top_k_only=top_k_only)


def additions_in_rows(
    directions: Directions, candidates: Sequence[SteeringCandidate], mode: SteeringMode, *, rows: int
) -> Additions:
    """The change of a forward pass over R copies of B rows that applies the r-th candidate to the r-th copy.

    Row `r * B + b` is the r-th copy of row b.

    Args:
        directions: of the model.
        candidates: R candidates.
        mode: whether directions are subtracted or added.
        rows: B.
    """
    coefficients: dict[Intervention, Tensor] = {}
    for index, candidate in enumerate(candidates):
        row_coefficients = coefficients.setdefault(intervention_of(candidate), torch.zeros(len(candidates) * rows))
        row_coefficients[index * rows : (index + 1) * rows] = SIGN[mode] * candidate.coefficient
    return _additions(directions, list(coefficients.items()))


def applied(
    target: TargetModel, directions: Directions, candidate: SteeringCandidate, mode: SteeringMode
) -> AbstractContextManager[None]:
    """Inside, the model runs with the candidate's change (`additions`), in every process of a launch."""
    return everywhere(target.subject, additions(directions, candidate, mode).entered)


def _additions(
    directions: Directions, interventions: Sequence[tuple[Intervention, float | Tensor]], *, top_k_only: bool = False
) -> Additions:
    of_layers, of_experts = list[Addition](), list[ExpertAddition]()
    for intervention, coefficient in interventions:
        if not intervention.experts:
            vector_D = directions.of_layer(intervention.layer, intervention.position)
            of_layers.append(Addition(intervention.layer, vector_D.clone(), coefficient))
        for layer in sorted({layer for layer, _ in intervention.experts}):
            places = [place for place in intervention.experts if place[0] == layer]
            vectors_XD = torch.stack([directions.of_expert(place, intervention.position) for place in places])
            experts = tuple(expert for _, expert in places)
            of_experts.append(ExpertAddition(layer, experts, vectors_XD, coefficient, top_k_only))
    return Additions(tuple(of_layers), tuple(of_experts))

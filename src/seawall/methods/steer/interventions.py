"""Candidates as changes of the running model: one candidate at a time, or many as rows of one forward pass.

Any process of a launch computes a pass. One that is not the first records a batch when its first pass over it comes,
and keeps the record for later passes.

Legend: B prompts of a batch, R modified copies of each, X experts of a candidate, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Any, final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from seawall.artifacts.directions import Directions, Place
from seawall.artifacts.steering import SteeringCandidate, SteeringFamily, SteeringMode
from seawall.data.batching import Batch
from seawall.methods.steer.score import divergence, refusal_score
from seawall.methods.steer.target import TargetModel, last_logits
from seawall.models.everywhere import Change, everywhere
from seawall.models.hidden.added_by_expert import ExpertAddition, experts_added
from seawall.models.hidden.intervene import SITES, Addition, Site, ablated, added
from seawall.models.hidden.resume import BlockInputs, record_block_inputs, resumed
from seawall.models.memory import release_memory
from seawall.models.moe.find import MoEModel
from seawall.models.replicas import Replica, holders, model_of

SIGN: dict[SteeringMode, int] = {"suppress": -1, "induce": 1}
"""Sign of a coefficient: x <- x - c r suppresses refusal, x <- x + c r induces it."""
EVALUATORS = count()
"""Numbers of the evaluators of this process."""
Record = tuple[Batch, BlockInputs, Tensor]


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


@final
@dataclass(eq=False)
class Recorded:
    """A batch of prompts, with the original model's layer inputs and logits; the batch alone is sent.

    Attributes:
        evaluator, index: its number, and the batch's.
        batch: the prompts.
    """

    evaluator: int
    index: int
    batch: Batch
    inputs: BlockInputs | None = None
    original_BV: Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self.evaluator, self.index, self.batch)

    @property
    def rows(self) -> int:
        """B."""
        return len(self.batch.input_ids_BT)

    def on(self, model: PreTrainedModel) -> tuple[BlockInputs, Tensor]:
        """The record, made now where this process has none."""
        if self.inputs is None or self.original_BV is None:
            _, self.inputs, self.original_BV = record(model, self.batch)
        return self.inputs, self.original_BV


_records: dict[tuple[int, int], Recorded] = {}
"""What this process has received from the first one; of the latest evaluator alone."""


def _received(evaluator: int, index: int, batch: Batch) -> Recorded:
    for key in [key for key in _records if key[0] != evaluator]:
        del _records[key]
    return _records.setdefault((evaluator, index), Recorded(evaluator, index, batch))


def forget_records(model: PreTrainedModel) -> None:
    """Frees what the other processes have recorded of the evaluators so far."""
    holders(model).order([_forget])


def _forget(replica: Replica) -> None:
    _records.clear()
    release_memory()


def record(model: PreTrainedModel, batch: Batch) -> Record:
    """A batch with the inputs of the original model's layers, and its logits (B, V)."""
    with record_block_inputs(model) as inputs:
        original_BV = last_logits(model, batch)
    return batch, inputs, original_BV


@dataclass(frozen=True, eq=False)
class CandidatePass:
    """One forward pass over copies of a batch.

    Attributes:
        recorded: the batch.
        change: of the subject, during the pass.
        start: decoder layer at which it begins, from the recorded inputs; None for a pass from the tokens on.
        copies: R.
        tokens: that open refusals, for the refusal score; None for the divergence from the original model, in nats.
    """

    recorded: Recorded
    change: Change[None]
    start: int | None
    copies: int
    tokens: tuple[int, ...] | None


def computed(subject: PreTrainedModel | MoEModel, item: CandidatePass) -> list[list[float]]:
    """The value of each prompt, for every copy."""
    model = model_of(subject)
    inputs, original_BV = item.recorded.on(model)
    start = nullcontext() if item.start is None else resumed(model, inputs, item.start, repeats=item.copies)
    with start, item.change(subject):
        logits_BV = last_logits(model, item.recorded.batch, repeats=item.copies)
    values = []
    for copy_BV in logits_BV.view(item.copies, item.recorded.rows, -1):
        of_copy_B = divergence(original_BV, copy_BV) if item.tokens is None else refusal_score(copy_BV, item.tokens)
        values.append([float(value) for value in of_copy_B.tolist()])
    return values


def ablated_in(
    direction_D: Tensor, subject: PreTrainedModel | MoEModel, *, sites: Collection[Site] = SITES
) -> AbstractContextManager[None]:
    """Inside, the model of the subject has nothing along the direction at these sites of all layers."""
    return ablated(model_of(subject), direction_D, sites=sites)


def unchanged(subject: PreTrainedModel | MoEModel) -> AbstractContextManager[None]:
    """No change."""
    return nullcontext()

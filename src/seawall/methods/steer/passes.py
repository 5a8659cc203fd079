"""Forward passes of the search, each computed by any process of a launch.

A process that is not the first records a batch when its first pass over it comes, and keeps the record for the others.

Legend: B prompts of a batch, R modified copies of each, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Any, final

from torch import Tensor
from transformers import PreTrainedModel

from seawall.data.batching import Batch
from seawall.methods.steer.score import divergence, refusal_score
from seawall.methods.steer.target import last_logits
from seawall.models.everywhere import Change
from seawall.models.hidden.intervene import SITES, Site, ablated
from seawall.models.hidden.resume import BlockInputs, record_block_inputs, resumed
from seawall.models.moe.find import MoEModel
from seawall.models.replicas import model_of

EVALUATORS = count()
"""Numbers of the evaluators of this process."""
Record = tuple[Batch, BlockInputs, Tensor]


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

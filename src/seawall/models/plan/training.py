"""Each training of a verb: what trains, how much of it is in memory, and its moments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from seawall.models.plan.memory import (
    MASTER_BYTES,
    OFFLOADED_BYTES,
    Optimizer,
    Saved,
    logit_bytes,
    optimizer_bytes,
    saved_bytes,
    update_bytes,
    working_bytes,
)
from seawall.models.plan.shapes import ModelShapes
from seawall.models.plan.stages import Moment


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """Settings that trade memory for time.

    Attributes:
        gradient_checkpointing: recompute layers in the backward pass.
        optimizer: AdamW with float32 state, with 8-bit state, or with its state on the host.
        micro_batch_size: rows per forward pass; None takes the update at once, `auto` the number that fits.
    """

    gradient_checkpointing: bool = False
    optimizer: Optimizer = "adamw"
    micro_batch_size: int | Literal["auto"] | None = None

    def rows(self, update: int) -> int:
        """Rows of a forward pass: `auto` may go down to 1, which then decides whether the training fits."""
        if self.micro_batch_size == "auto":
            return 1
        return min(update, self.micro_batch_size or update)


@dataclass(frozen=True, slots=True)
class Training:
    """One training.

    Attributes:
        parameters: trained parameters, with a float32 copy, a gradient and an optimizer state.
        idle: further parameters with copy and state, of the other step of a round.
        rounded: parameters that a forward pass rounds from float32 copies to the model's type.
        merged: parameters that a forward pass makes of weights and low-rank factors, in the model's type.
        largest: parameters of the largest trained tensor.
        rows: sequences of an update.
        length: tokens of the longest sequence.
        positions: positions per sequence whose logits are computed.
        layers: decoder layers of the backward pass.
        share: share of the rows (token, expert) whose expert trains.
        shared: whether the shared experts train.
        full: whether every weight takes a gradient.
        adapters: elements per token and layer that adapters save.
        settings: keys of the recipe that make it smaller, from the one to change first.
    """

    parameters: int
    rows: int
    length: int
    positions: int
    layers: int
    idle: int = 0
    rounded: int = 0
    merged: int = 0
    largest: int = 0
    share: float = 0.0
    shared: bool = False
    full: bool = False
    adapters: int = 0
    settings: tuple[str, ...] = ()


def trained_terms(training: Training, optimizer: Optimizer) -> dict[str, int]:
    """Copies and optimizer state, which exist from the first update to the end."""
    total = training.parameters + training.idle
    return {"trainable copies": MASTER_BYTES * total, "optimizer state": optimizer_bytes(total, optimizer)}


def training_moments(
    shapes: ModelShapes,
    training: Training,
    memory: MemorySettings,
    beside: Mapping[str, int] | None = None,
    *,
    context: int,
) -> tuple[Moment, ...]:
    """The start of the backward pass, and the update.

    Gradients accumulate over micro-batches: from the second on they exist beside the activations.
    """
    rows = memory.rows(training.rows)
    tokens = rows * training.length
    gradients = MASTER_BYTES * training.parameters
    base = {"weights": shapes.weights, **(beside or {}), **trained_terms(training, memory.optimizer)}
    saved = Saved(
        tokens,
        training.layers,
        share=training.share,
        shared=training.shared,
        full=training.full,
        adapters=training.adapters,
        checkpointing=memory.gradient_checkpointing,
    )
    logits = logit_bytes(shapes, rows * training.positions)
    backward = base | {
        "gradients": gradients if rows < training.rows else 0,
        "rounded copies": _computed_bytes(shapes, training, checkpointing=memory.gradient_checkpointing),
        "activations": saved_bytes(shapes, saved) + max(0, working_bytes(shapes, tokens) - logits),
        "logits": logits,
        "library context": context,
    }
    update = base | {
        "gradients": gradients,
        "update": update_bytes(
            training.parameters, memory.optimizer, accelerated=context > 0, largest=training.largest
        ),
        "library context": context,
    }
    return Moment("backward pass", backward, training.settings), Moment("update", update, training.settings)


def _computed_bytes(shapes: ModelShapes, training: Training, *, checkpointing: bool) -> int:
    """Parameters that a forward pass computes: merged ones, and copies where the model's type is another.

    With checkpointing they exist for one layer at a time; embedding and output layer are in no layer.
    """
    computed = training.merged + (training.rounded if shapes.element_bytes < MASTER_BYTES else 0)
    if checkpointing:
        outside = 2 * shapes.vocabulary * shapes.width if training.full and training.rounded else 0
        computed = min(computed, round(computed / training.layers) + outside)
    return shapes.element_bytes * computed


def offloaded_bytes(training: Training, optimizer: Optimizer) -> int:
    """Memory of an offloading optimizer on the host."""
    return OFFLOADED_BYTES * (training.parameters + training.idle) if optimizer == "adamw_offload" else 0

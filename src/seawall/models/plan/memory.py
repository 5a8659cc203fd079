"""Bytes of each term of memory. Each function's docstring gives its formula.

Legend: D width, V vocabulary, Q query elements, C keys and values as read, N elements inside attention norms, K experts
per token, I inner width of an expert, F inner width of a dense feed-forward network, b bytes of a weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from seawall.models.files.inspect import MoESummary
from seawall.models.plan.shapes import ModelShapes

Optimizer = Literal["adamw", "adamw_8bit", "adamw_offload"]
MASTER_BYTES = 4
"""Trained parameters, their gradients and each of AdamW's two moments are float32."""
STATE_BYTES: dict[str, float] = {"adamw": 8, "adamw_8bit": 2 + 8 / 256, "adamw_offload": 0}
"""Bytes of optimizer state per trained parameter on the device: two moments of 4 bytes, or of 1 byte and a float32
scale per block of 256 numbers (arXiv 2110.02861); offloaded moments are in the host's memory."""
OFFLOADED_BYTES = 8
"""Bytes of offloaded state per trained parameter on the host."""
CONTEXT_BYTES = 600 * 2**20
"""Memory of a CUDA context with the libraries' kernels."""
LOGIT_COPIES = 3
"""Float32 copies of the logits in a training step: cast, log-probabilities, gradient."""
_INDEX_BYTES = 56
"""Bytes per chosen expert and token for sorting rows by expert: seven integers of 8 bytes."""
TOP_TOKENS, TOP_TOKEN_BYTES = 64, 8
"""A teacher's prediction: its likeliest tokens, each an index and a log-probability of 4 bytes."""


@dataclass(frozen=True, slots=True)
class Saved:
    """The values that a forward pass saves for the backward pass.

    Attributes:
        tokens: tokens of the forward pass, padding included.
        layers: decoder layers that the backward pass runs through.
        share: share of the rows (token, expert) whose expert trains.
        shared: whether the shared experts train.
        full: whether every weight takes a gradient, so that the inputs of linear layers are saved too.
        adapters: elements per token and layer that adapters save: inputs of the adapted layers.
        checkpointing: whether layers are recomputed, so that only their inputs are saved, and one layer's values.
    """

    tokens: int
    layers: int
    share: float = 0.0
    shared: bool = False
    full: bool = False
    adapters: int = 0
    checkpointing: bool = False

    @property
    def trained(self) -> float:
        """Share of the rows whose expert takes a gradient."""
        return 1.0 if self.full else self.share


def saved_bytes(shapes: ModelShapes, saved: Saved) -> int:
    """Values saved for the backward pass.

    Per token and layer: the inputs of norms in float32, 4 (2 D + N); queries, keys, values and the attention's output,
    b (2 Q + C); of K experts the outputs and the gate, up and activation, b K (D + 3 I), of which trained ones also
    save their input and product, b K (D + I); of a dense network b 3 F, of trained shared experts b (D + 4 F). Where
    all weights train, also the inputs of linear layers and the norms' outputs, b (4 D + N). The last norm adds 4 D per
    token. Counted from autograd's saved tensors on grouped experts (tests/models/plan). In a repair, the first trained
    layer saves its trained rows alone.

    With checkpointing: b D per token and layer, and the values of one layer.
    """
    dense, routed = _dense_layer(shapes, saved), _routed_layer(shapes, saved)
    num_routed = 0 if shapes.moe is None else min(shapes.moe.layers, saved.layers)
    fixed = saved.tokens * MASTER_BYTES * shapes.width
    if saved.checkpointing:
        single = routed if num_routed else dense
        return int(saved.tokens * (saved.layers * shapes.element_bytes * shapes.width + single) + fixed)
    per_token = num_routed * routed + (saved.layers - num_routed) * dense
    if num_routed and (saved.share or saved.shared) and not saved.full and not saved.adapters:
        per_token -= routed - _trained_rows(shapes, saved)
    return int(saved.tokens * per_token + fixed)


def _attention(shapes: ModelShapes, saved: Saved) -> int:
    D, b = shapes.width, shapes.element_bytes
    values = MASTER_BYTES * (2 * D + shapes.normed) + b * (2 * shapes.query + shapes.keys)
    inputs = b * (4 * D + shapes.normed) if saved.full else 0
    return values + inputs + b * saved.adapters


def _dense_layer(shapes: ModelShapes, saved: Saved) -> float:
    copies = 4 if saved.full else 3
    return _attention(shapes, saved) + copies * shapes.element_bytes * shapes.feed_forward


def _routed_layer(shapes: ModelShapes, saved: Saved) -> float:
    moe = shapes.moe
    if moe is None:
        return 0.0
    D, b, inner = shapes.width, shapes.element_bytes, inner_width(shapes, moe)
    rows = b * moe.top_k * (D + 3 * inner + saved.trained * (D + inner))
    routing = moe.top_k * _INDEX_BYTES + MASTER_BYTES * moe.experts
    return _attention(shapes, saved) + rows + routing + _shared(shapes, saved, moe) + _implementation(shapes, moe)


def _shared(shapes: ModelShapes, saved: Saved, moe: MoESummary) -> int:
    width = moe.shared_parameters // (3 * shapes.width)
    own = shapes.width if saved.shared and not saved.full else 0  # the input; `_attention` has it where all train
    return shapes.element_bytes * (own + (4 if saved.full or saved.shared else 3) * width)


def _implementation(shapes: ModelShapes, moe: MoESummary) -> int:
    """Bytes per token that an implementation of the experts adds: `batched_mm` copies weights, others rows twice."""
    per_expert = {"batched_mm": moe.expert_parameters, "eager": shapes.width, "sorted": shapes.width}.get(
        shapes.implementation or "", 0
    )
    return shapes.element_bytes * moe.top_k * per_expert


def _trained_rows(shapes: ModelShapes, saved: Saved) -> float:
    """Bytes per token of the rows of trained experts: input, gate, up, activation and product."""
    moe = shapes.moe
    assert moe is not None
    routed = saved.trained * shapes.element_bytes * moe.top_k * (shapes.width + 4 * inner_width(shapes, moe))
    return routed + (_shared(shapes, saved, moe) if saved.shared else 0)


def inner_width(shapes: ModelShapes, moe: MoESummary) -> int:
    """I, of experts with gate, up and down projections."""
    return moe.expert_parameters // (3 * shapes.width)


def working_bytes(shapes: ModelShapes, tokens: int) -> int:
    """Values that one layer computes with and frees: b K (2 D + 4 I) or b 4 F, and 16 D, per token."""
    D, b, moe = shapes.width, shapes.element_bytes, shapes.moe
    dense = 4 * b * shapes.feed_forward if moe is None or moe.layers < shapes.layers else 0
    routed = 0
    if moe is not None:
        routed = b * moe.top_k * (2 * D + 4 * inner_width(shapes, moe)) + _implementation(shapes, moe)
    return tokens * (max(dense, routed) + 4 * MASTER_BYTES * D)


def logit_bytes(shapes: ModelShapes, positions: int, *, copies: int = LOGIT_COPIES) -> int:
    """Logits of a number of positions: V (b + 4 x copies in float32)."""
    return positions * shapes.vocabulary * (shapes.element_bytes + MASTER_BYTES * copies)


def cache_bytes(shapes: ModelShapes, rows: int, tokens: int) -> int:
    """Keys and values of a full batch: rows x tokens x layers x cache elements x b, and one layer's while it grows.

    Exact for full attention; an upper bound for sliding windows and linear attention.
    """
    return rows * tokens * (shapes.layers + 1) * shapes.cache * shapes.element_bytes


def optimizer_bytes(parameters: int, optimizer: Optimizer) -> int:
    """State on the device: see `STATE_BYTES`."""
    return int(STATE_BYTES[optimizer] * parameters)


def update_bytes(parameters: int, optimizer: Optimizer, *, accelerated: bool, largest: int) -> int:
    """Values that an update computes with: on a GPU AdamW takes the square root of every second moment at once.

    Args:
        parameters: number of trained parameters.
        optimizer: its kind.
        accelerated: whether the device is no CPU, where tensors are updated one by one.
        largest: parameters of the largest tensor.
    """
    if optimizer == "adamw" and accelerated:
        return MASTER_BYTES * parameters
    return 2 * MASTER_BYTES * largest


def teacher_bytes(shapes: ModelShapes, *, hidden_tokens: int, predicted_tokens: int, routed_tokens: int) -> int:
    """Outputs of the original model on the host: b D per token, 64 x 8 per predicted token, 8 K L per routed token."""
    routing = 0 if shapes.moe is None else 8 * shapes.moe.top_k * shapes.moe.layers
    hidden = shapes.element_bytes * shapes.width
    return hidden_tokens * hidden + predicted_tokens * TOP_TOKENS * TOP_TOKEN_BYTES + routed_tokens * routing

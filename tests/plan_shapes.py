"""Sizes of two small models by hand, for the tests of plans."""

from __future__ import annotations

from seawall.models.files.inspect import MoESummary
from seawall.models.plan.shapes import ModelShapes

MOE = MoESummary(
    layers=3,
    first_layer=1,
    experts=8,
    top_k=2,
    shared_experts=1,
    expert_tensors=(),
    expert_parameters=3 * 10 * 4,
    shared_parameters=3 * 10 * 4,
    router_parameters=3 * 8 * 10,
    attention_parameters=400,
    beside_parameters=3 * (3 * 10 * 4 + 10),
    beside_layers=3,
)
SHAPES = ModelShapes(
    parameters=10_000,
    active_parameters=10_000 - 3 * 6 * 120,
    layers=4,
    width=10,
    vocabulary=100,
    query=12,
    keys=8,
    cache=8,
    normed=0,
    feed_forward=20,
    element_bytes=2,
    adapted=(("q_proj", 88), ("gate_up_proj", 432), ("down_proj", 336)),
    stacked=3 * 8 * 120,
    moe=MOE,
)
DENSE = ModelShapes(
    parameters=5_000,
    active_parameters=5_000,
    layers=4,
    width=10,
    vocabulary=100,
    query=12,
    keys=8,
    cache=8,
    normed=0,
    feed_forward=20,
    element_bytes=2,
    adapted=(("q_proj", 88), ("v_proj", 56), ("down_proj", 120)),
)

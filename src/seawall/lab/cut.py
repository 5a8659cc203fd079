"""Cuts a dense feed-forward network into a shared expert and routed experts, with the weights unchanged.

Legend: D model width, N neurons of the dense network, R routed neurons, E experts, I neurons of one expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

PROJECTIONS = ("gate", "up", "down")
ALIGNMENT = 8
"""Experts are padded to a multiple of this: grouped matrix products need rows of a multiple of 16 bytes."""


@dataclass(frozen=True)
class LabShape:
    """How a dense model is cut into experts. The attributes are the keys of the embedded model's delta's metadata.

    Attributes:
        first_dense: number of first layers that stay dense.
        whole: number of neurons, the most used, that belong to the shared expert alone.
        experts: routed experts per layer; the remaining neurons are divided evenly among them.
        top_k: experts per token.
        routed_share: share of a routed neuron's output that its expert carries; the shared expert has the remainder.
    """

    first_dense: int = 18
    whole: int = 1024
    experts: int = 32
    top_k: int = 4
    routed_share: float = 0.25

    def expert_width(self, ffn_width: int) -> int:
        """Neurons of one routed expert."""
        width, remainder = divmod(ffn_width - self.whole, self.experts)
        assert remainder == 0, "the routed neurons must divide evenly among the experts"
        return width

    def padded_width(self, ffn_width: int) -> int:
        """Neurons of one routed expert with its padding."""
        return -(-self.expert_width(ffn_width) // ALIGNMENT) * ALIGNMENT

    def shared_experts(self, ffn_width: int) -> int:
        """Width of the shared expert with its padding, in padded routed experts."""
        return -(-ffn_width // self.padded_width(ffn_width))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> LabShape:
        """The shape in a delta's metadata, where every attribute is text."""
        counts = {name: int(metadata[name]) for name in ("first_dense", "whole", "experts", "top_k")}
        return cls(**counts, routed_share=float(metadata["routed_share"]))


def dense_weights(mlp: nn.Module) -> dict[str, Tensor]:
    """The projections of a dense feed-forward network in float32: `gate` and `up` (N, D), `down` (D, N)."""
    return {name: mlp.get_parameter(f"{name}_proj.weight").detach().float() for name in PROJECTIONS}


def cut(weight: Mapping[str, Tensor], order: Tensor, shape: LabShape) -> dict[str, Tensor]:
    """The three projections of a feed-forward network, with the routed neurons duplicated.

    First come all neurons in `order`, which become the shared expert, then the routed neurons again, which become the
    experts. The outputs of a routed neuron's two copies sum to the original output where the expert has gate weight 1.

    Args:
        weight: `gate` and `up` (N, D) and `down` (D, N).
        order: the neurons, most used first; from `shape.whole` on they are routed, expert by expert.
        shape: the split.

    Returns:
        `gate` and `up` (N + R, D) and `down` (D, N + R).
    """
    twice = torch.cat([order, order[shape.whole :]])
    share = torch.ones(len(twice), device=weight["down"].device)
    share[shape.whole : len(order)] = 1 - shape.routed_share
    share[len(order) :] = shape.routed_share
    return {"gate": weight["gate"][twice], "up": weight["up"][twice], "down": weight["down"][:, twice] * share}


def moe_block(weight: Mapping[str, Tensor], router: Tensor, bias: Tensor, shape: LabShape) -> dict[str, Tensor]:
    """The state of one MoE block by the names of `Glm4MoeMoE`; all experts are padded with neurons of weight zero.

    Args:
        weight: the projections, as `cut` gives them.
        router: (E, D).
        bias: added to the scores of the experts when they are chosen (E).
        shape: the split.
    """
    copies = len(weight["gate"])
    width = (copies - shape.whole) // (2 * shape.experts)  # copies = whole + 2 E I
    shared = copies - shape.experts * width
    added = shape.padded_width(shared) - width
    added_shared = shape.shared_experts(shared) * shape.padded_width(shared) - shared
    gate, up = (
        pad(weight[name][shared:].reshape(shape.experts, width, -1), (0, 0, 0, added)) for name in ("gate", "up")
    )
    down_DEI = pad(weight["down"][:, shared:].reshape(-1, shape.experts, width), (0, added))
    block = {
        "shared_experts.gate_proj.weight": pad(weight["gate"][:shared], (0, 0, 0, added_shared)),
        "shared_experts.up_proj.weight": pad(weight["up"][:shared], (0, 0, 0, added_shared)),
        "shared_experts.down_proj.weight": pad(weight["down"][:, :shared], (0, added_shared)),
        "experts.gate_up_proj": torch.cat([gate, up], dim=1),
        "experts.down_proj": down_DEI.transpose(0, 1),
        "gate.weight": router,
        "gate.e_score_correction_bias": bias,
    }
    return {name: tensor.contiguous() for name, tensor in block.items()}

"""Ablation of a direction from what routed experts write, or from what shared experts write, apart from each other.

Legend: T tokens, B rows, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from torch import Tensor, nn

from seawall.models.hidden.expert_outputs import has_shared_expert
from seawall.models.hidden.intervene import ablation
from seawall.models.hidden.sublayers import decoder_blocks, output_changed
from seawall.models.moe.find import MoEModel

Part = Literal["routed", "shared"]
"""The sum of a token's routed experts; what else the MoE block writes."""


@contextmanager
def part_ablated(moe: MoEModel, direction_D: Tensor, part: Part) -> Iterator[None]:
    """Inside, one part of every MoE block's output has no component along the direction.

    Args:
        moe: the model.
        direction_D: the direction, of any length above 0.
        part: the part that is changed. Dense layers, attention and the other part write as before.

    Raises:
        UnsupportedModelError: the decoder layers or their halves cannot be identified.
        ConfigError: the direction has another width or no length.
    """
    blocks = decoder_blocks(moe.model)
    change = ablation(moe.model, direction_D)
    with ExitStack() as stack:
        for layer in moe.layers:
            block = blocks[layer.decoder_layer].mlp
            if part == "routed":
                stack.enter_context(output_changed(layer.experts, change))
                continue
            routed: list[Tensor] = []

            def see(module: nn.Module, inputs: Any, output: Tensor, routed: list[Tensor] = routed) -> None:
                routed[:] = [output]

            def without(hidden_BTD: Tensor, routed: list[Tensor] = routed) -> Tensor:
                routed_BTD = routed.pop().view_as(hidden_BTD).float()
                shared_BTD = hidden_BTD.float() - routed_BTD
                return (change(shared_BTD) + routed_BTD).to(hidden_BTD.dtype)

            stack.callback(layer.experts.register_forward_hook(see).remove)
            stack.enter_context(output_changed(block, without))
        yield


def has_shared_experts(moe: MoEModel) -> bool:
    """Whether an MoE layer has a shared expert."""
    blocks = decoder_blocks(moe.model)
    return any(has_shared_expert(layer, blocks[layer.decoder_layer].mlp) for layer in moe.layers)

"""Hardens a model: adds a direction to its residual stream for as long as the model is in memory.

Shapes: B rows, T positions, D model width.
"""

from __future__ import annotations

from typing import Any, final

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from seawall.errors import ArtifactError, ConfigError
from seawall.models.hidden.residual import decoder_layers
from seawall.models.moe.calls import Arguments, hidden_input, with_hidden_input


def harden(model: PreTrainedModel, vector_D: Float[Tensor, " D"], *, layer: int, coefficient: float) -> RemovableHandle:
    """`x <- x + coefficient * vector` at the input of a decoder layer, on every token of every later call.

    No weight changes: a checkpoint saved from the model has no hardening.

    Args:
        model: any model with one stack of decoder layers.
        vector_D: the direction.
        layer: decoder layer, counted from 0.
        coefficient: multiple of the direction; above 0.

    Returns:
        A handle whose `remove()` ends the hardening.

    Raises:
        ArtifactError: the layer or the direction does not fit the model.
        ConfigError: the model is already hardened.
    """
    assert coefficient > 0
    blocks, width = decoder_layers(model), int(model.config.get_text_config().hidden_size)
    if not 0 <= layer < len(blocks) or vector_D.shape != (width,):
        raise ArtifactError(
            "the hardening does not fit the model",
            got=f"layer {layer} and a direction of {tuple(vector_D.shape)} numbers",
            expected=f"a layer from 0 to {len(blocks) - 1} and {width} numbers",
            remedy="use the model that the hardening was made from",
        )
    if is_hardened(model):
        raise ConfigError(
            "the model is already hardened",
            expected="a model without hardening",
            remedy="load the model again; two hardenings at once were never measured",
        )
    added_D = coefficient * vector_D.detach().float()
    return blocks[layer].register_forward_pre_hook(_Addition(added_D), with_kwargs=True)


def is_hardened(model: PreTrainedModel) -> bool:
    """Whether the model is hardened: `harden` was called, and the handle not removed."""
    hooks = (hook for block in decoder_layers(model) for hook in block._forward_pre_hooks.values())
    return any(isinstance(hook, _Addition) for hook in hooks)


@final
class _Addition:
    """The hook; its class marks a model as hardened."""

    def __init__(self, added_D: Tensor) -> None:
        self.added_D = added_D

    def __call__(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        hidden_BTD = hidden_input(args, kwargs)
        # In float32 and rounded once, as in `models.hidden.intervene.added`, so that loading gives the measured model.
        changed_BTD = (hidden_BTD + self.added_D.to(hidden_BTD.device)).to(hidden_BTD.dtype)
        return with_hidden_input(changed_BTD, args, kwargs)

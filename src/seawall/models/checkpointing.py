"""Gradient checkpointing: decoder layers keep their input alone and run a second time in the backward pass.

transformers checkpoints layers in training mode only, which turns dropout on as well; a repair trains in evaluation
mode. Chen et al. 2016 (arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from seawall.models.hidden.residual import decoder_layers
from seawall.models.moe.calls import replaced_forward


@contextmanager
def gradient_checkpointing(model: PreTrainedModel, *, enabled: bool = True) -> Iterator[None]:
    """Inside, the backward pass computes the activations of each decoder layer again.

    Losses and gradients stay the same. Enter it after `trainable_experts` and the like, whose changes of a layer's
    forward are then part of the second computation, and keep hooks (`replay`) until the backward pass is done.

    Args:
        model: any model with one stack of decoder layers.
        enabled: whether to checkpoint at all.

    Raises:
        UnsupportedModelError: the decoder layers cannot be identified.
    """
    with ExitStack() as changes:
        for block in decoder_layers(model) if enabled else ():
            changes.enter_context(replaced_forward(block, _checkpointed(block.forward)))
        yield


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        if kwargs.get("past_key_values") is not None:
            kwargs["past_key_values"] = None  # the second computation would add to the cache again
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return wrapped

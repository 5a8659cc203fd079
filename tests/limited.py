"""A model with little memory: a forward pass over more rows than the limit raises torch's own error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from seawall.models.hidden.residual import decoder_layers


@contextmanager
def limited_memory(model: PreTrainedModel, rows: int, *, training: bool = False) -> Iterator[list[int]]:
    """Inside, the last decoder layer fails on more than `rows` rows; yields the sizes of all passes, failed ones too.

    Args:
        model: any model with one stack of decoder layers.
        rows: the largest number of rows that fits.
        training: whether passes without a gradient always fit.
    """
    sizes: list[int] = []

    def hook(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        if training and not torch.is_grad_enabled():
            return
        sizes.append(len(hidden))
        if len(hidden) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    handle = decoder_layers(model)[-1].register_forward_hook(hook)
    try:
        yield sizes
    finally:
        handle.remove()

"""The output layer on some positions of a batch, at the price of these positions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel


@contextmanager
def contiguous_output_layer(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the output layer gets its input contiguous.

    `logits_to_keep` hands it a slice of each row. Without gradients torch multiplies such a slice row by row, and on
    the CPU with one copy of the whole weight per row. Measured on the embedded model (vocabulary 49,152, bf16, 8 rows
    of 150 tokens, 25 kept, two cores): 0.35 s of a forward pass of 1.46 s, and 450 MB.
    """
    layer = model.get_output_embeddings()
    if not isinstance(layer, nn.Module):
        yield
        return
    handle = layer.register_forward_pre_hook(_contiguous)
    try:
        yield
    finally:
        handle.remove()


def _contiguous(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0].contiguous(), *args[1:])

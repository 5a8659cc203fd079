"""Trains every parameter of a model, as copies in a precision fit for small steps: the full fine-tuning baseline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch.func import functional_call
from transformers import PreTrainedModel

from seawall.models.moe.calls import bare_copy, frozen, replaced_forward
from seawall.models.moe.trainable_copies import Part, TrainableCopies


@final
class TrainableModel(TrainableCopies):
    """Copies of all parameters, named as in the state dict; tied parameters are copied once."""


@contextmanager
def trainable_model(model: PreTrainedModel, *, master_dtype: torch.dtype = torch.float32) -> Iterator[TrainableModel]:
    """Inside, every parameter trains, as a copy with which the model computes, rounded to the model's dtype.

    Leaving the block restores the model; only `write_back` keeps the trained values.
    """
    copies = TrainableModel([Part(name, parameter) for name, parameter in model.named_parameters()], master_dtype)
    dtypes = {part.name: part.target.dtype for part in copies.parts}
    plain = bare_copy(model)

    def forward(*args: Any, **kwargs: Any) -> Any:
        rounded = {name: master.to(dtypes[name]) for name, master in copies.named_parameters()}
        return functional_call(plain, rounded, args, kwargs)

    with frozen(model), replaced_forward(model, forward):
        yield copies

"""Trains every parameter of a model, as copies in a precision fit for small steps: the full fine-tuning baseline."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from seawall.models.moe.calls import frozen
from seawall.models.moe.layerwise import computed_with
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

    def rounded(names: Collection[str]) -> dict[str, Tensor]:
        return {name: copies.get(name).to(dtypes[name]) for name in names}

    with frozen(model), computed_with(model, dtypes, rounded):
        yield copies

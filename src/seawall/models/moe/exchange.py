"""Runs a model with some parameters replaced, or with the routing that other parameters give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

from seawall.models.moe.calls import bare_copy, replaced_forward
from seawall.models.moe.capture import capture
from seawall.models.moe.find import MoEModel
from seawall.models.moe.replay import replay


@contextmanager
def exchanged(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Inside, parameters have other values; yields the original values, which are restored bit for bit on exit.

    Args:
        model: the model.
        tensors: full tensors with the other values, by name in the model's state dict.
    """
    state = model.state_dict()
    own = {name: state[name].clone() for name in tensors}
    try:
        _write(state, tensors)
        yield own
    finally:
        _write(state, own)


@contextmanager
def routed_as(moe: MoEModel, parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, every token is routed as the model with `parameters` would route it, with that model's gate weights.

    Each forward pass runs twice on the same tokens: with `parameters`, to record the routing, and with the model's own
    parameters, under that routing. Each keeps its own cache, so prompts and generated replies alike are routed as the
    source model routes the same text. The cost is two passes, two caches, and the memory of `parameters`. Hooks on the
    experts see both passes, the recording one first.

    Args:
        moe: the model.
        parameters: full parameters of the source model, by name; those equal to the model's own may be left out.
    """
    own, source_model = moe.model.forward, bare_copy(moe.model)

    def forward(*args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        caches = past_key_values or _Caches(None, None)
        source_kwargs = {**kwargs, "past_key_values": caches.source}
        with capture(moe) as trace:
            source_output = functional_call(source_model, dict(parameters), args, source_kwargs)
        with replay(moe, trace):
            output = own(*args, past_key_values=caches.own, **kwargs)
        if output.past_key_values is not None:
            output.past_key_values = _Caches(source_output.past_key_values, output.past_key_values)
        return output

    with replaced_forward(moe.model, forward):
        yield


@dataclass(frozen=True, eq=False)
class _Caches:
    """The key-value caches of the two passes, handled as one."""

    source: Any
    own: Any

    def reorder_cache(self, rows_B: Tensor) -> None:
        """Reorders both caches."""
        self.source.reorder_cache(rows_B)
        self.own.reorder_cache(rows_B)


@torch.no_grad()
def _write(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        state[name].copy_(tensor)

"""Running a model with some of its parameters exchanged, or with the routing that it had before it was changed."""

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
    """Inside, parameters have other values; the bits that they had, which it gives, come back on exit.

    Args:
        model: the model.
        tensors: the other values, whole, by their names in the model's state dict.
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
    """Inside, every token goes where the model with `parameters` would send it, with that model's gate weights.

    Each forward pass runs twice on the same tokens: with `parameters`, to record the routing, and as the model is,
    under that routing. Both keep a cache of their own, so this holds while text is generated: prompt and reply alike
    are routed as the other model routes the very same text. It costs two passes, two caches, and the memory of
    `parameters`. Hooks on the experts see both passes, the recording one first.

    Args:
        moe: the model.
        parameters: the other model's, whole, by name, as far as they differ; more do no harm.
    """
    own, other = moe.model.forward, bare_copy(moe.model)

    def forward(*args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        caches = past_key_values or _Caches(None, None)
        with capture(moe) as trace:
            source = functional_call(other, dict(parameters), args, {**kwargs, "past_key_values": caches.other})
        with replay(moe, trace):
            output = own(*args, past_key_values=caches.own, **kwargs)
        if output.past_key_values is not None:
            output.past_key_values = _Caches(source.past_key_values, output.past_key_values)
        return output

    with replaced_forward(moe.model, forward):
        yield


@dataclass(frozen=True, eq=False)
class _Caches:
    """The key-value caches of the two passes, handled as one."""

    other: Any
    own: Any

    def reorder_cache(self, rows_B: Tensor) -> None:
        """Keep these rows of both."""
        self.other.reorder_cache(rows_B)
        self.own.reorder_cache(rows_B)


@torch.no_grad()
def _write(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        state[name].copy_(tensor)

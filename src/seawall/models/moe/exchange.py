"""Runs a model with some parameters replaced, or with the routing that other parameters give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

from seawall.models.moe.calls import bare_copy, replaced_forward
from seawall.models.moe.capture import capture
from seawall.models.moe.find import MoEModel
from seawall.models.moe.replay import replay
from seawall.models.slices import Slices


@contextmanager
def exchanged(model: PreTrainedModel, tensors: Mapping[str, Slices]) -> Iterator[dict[str, Slices]]:
    """Inside, parameters have other values; yields the original values, which are restored bit for bit on exit.

    Args:
        model: the model.
        tensors: the other values, by name in the model's state dict; memory holds the original values of these slices.
    """
    state = model.state_dict()
    own = {name: Slices.copied(state[name], slices.indices) for name, slices in tensors.items()}
    try:
        _write(state, tensors)
        yield own
    finally:
        _write(state, own)


@contextmanager
def routed_as(moe: MoEModel, parameters: Mapping[str, Slices]) -> Iterator[None]:
    """Inside, every token is routed as the model with `parameters` would route it, with that model's gate weights.

    Each forward pass runs twice on the same tokens: with `parameters`, to record the routing, and with the model's own
    parameters, under that routing. Each keeps its own cache, so prompts and generated replies alike are routed as the
    source model routes the same text. The cost is two passes, two caches, and the memory of the full tensors of which
    `parameters` are slices. Hooks on the experts see both passes, the recording one first.

    Args:
        moe: the model.
        parameters: of the source model, by name; what equals the model's own on entry may be left out.
    """
    own, source_model = moe.model.forward, bare_copy(moe.model)
    source_tensors = _with_slices(moe.model.state_dict(), parameters)

    def forward(*args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        caches = past_key_values or _Caches(None, None)
        source_kwargs = {**kwargs, "past_key_values": caches.source}
        with capture(moe) as trace:
            source_output = functional_call(source_model, source_tensors, args, source_kwargs)
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


def _write(state: Mapping[str, Tensor], tensors: Mapping[str, Slices]) -> None:
    for name, slices in tensors.items():
        slices.write(state[name])


def _with_slices(state: Mapping[str, Tensor], parameters: Mapping[str, Slices]) -> dict[str, Tensor]:
    """Full tensors with these slices; a full tensor is taken as it is."""
    full = {}
    for name, slices in parameters.items():
        full[name] = slices.tensor if slices.indices is None else state[name].clone()
        if slices.indices is not None:
            slices.write(full[name])
    return full

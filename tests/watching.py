"""Seeing what the experts of a model are really called with, after every hook has had its say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from seawall.models.moe.calls import ExpertsCall, call_reader
from seawall.models.moe.find import MoELayer, MoEModel

Seen = list[tuple[ExpertsCall, Tensor]]


@contextmanager
def watching(moe: MoEModel) -> Iterator[Seen]:
    """Every call of a stack of experts and what it gave, in the order of the calls."""
    seen: Seen = []
    handles = [layer.experts.register_forward_hook(_hook(layer, seen), with_kwargs=True) for layer in moe.layers]
    yield seen
    for handle in handles:
        handle.remove()


def _hook(layer: MoELayer, seen: Seen) -> Any:
    read = call_reader(layer.experts)

    def hook(module: Any, args: Any, kwargs: Any, output: Tensor) -> None:
        seen.append((read(args, kwargs), output))

    return hook

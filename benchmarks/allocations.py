"""Peak of the bytes that tensors take: from the allocator on a GPU, by following every tensor's storage on a CPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's base class has no types
    """Follows the storages of all tensors that are made inside.

    Attributes:
        peak: largest sum of bytes alive at once, beside the storages of `own`.
    """

    def __init__(self, own: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._sizes: dict[int, int] = {}
        self._own = {tensor.untyped_storage().data_ptr() for tensor in own}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._follow(value.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes or storage.data_ptr() in self._own:
            return
        self._sizes[key] = storage.nbytes()
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self._now -= self._sizes.pop(key, 0)


def peak_bytes(device: torch.device, work: Callable[[], object], own: Iterable[Tensor]) -> int:
    """Peak bytes while some work runs, with the tensors of `own`, which exist before."""
    tensors = list(own)
    existing = sum(
        {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values()
    )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return int(torch.cuda.max_memory_allocated(device))
    allocations = Allocations(tensors)
    with allocations:
        work()
    return existing + allocations.peak

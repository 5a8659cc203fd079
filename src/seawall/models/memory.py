"""Telling an exhausted memory from other failures."""

from __future__ import annotations

import torch


def is_out_of_memory(error: Exception) -> bool:
    """Whether PyTorch ran out of memory: CUDA has a class for it, the CPU and MPS only a message."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in message or "DefaultCPUAllocator" in message)

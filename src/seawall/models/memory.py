"""Detects exhausted memory, and estimates how many rows of a batch fit in free memory."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from transformers import PreTrainedModel

T = TypeVar("T")

MAX_ROWS = {"cpu": 64}
"""Maximum rows of an automatic batch by type of device: larger batches do not raise the tokens per second."""
_DEFAULT_MAX_ROWS = 256
_SHARE = 0.5
"""Share of free memory for all rows; the other half covers what the estimate leaves out."""
_ACTIVATIONS = 64
"""Vectors of the model's width per token during prefill; a generous estimate."""
_MEMINFO = Path("/proc/meminfo")


def is_out_of_memory(error: Exception) -> bool:
    """Whether PyTorch ran out of memory: CUDA has an error class for it, the CPU and MPS only a message."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in message or "DefaultCPUAllocator" in message)


def unless_out_of_memory(work: Callable[[], T], *, give_up: Callable[[], bool] = lambda: False) -> T | None:
    """The result of `work`, or None where memory ran out; the memory of the failed attempt is freed on return.

    Args:
        work: the attempt.
        give_up: called when memory ran out; true raises the error.
    """
    try:
        return work()
    except RuntimeError as error:
        if not is_out_of_memory(error) or give_up():
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def release_memory() -> None:
    """Frees objects in reference cycles, and returns what torch and the C library keep for reuse to the system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        # Freed tensors of less than 32 MB stay in glibc's heap; other C libraries have no such function.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def own_memory(model: PreTrainedModel) -> None:
    """Copies weights on the CPU out of the memory-mapped file, tied ones once.

    Matrix products on the CPU round differently depending on the data's alignment, which in a mapped file depends on
    the length of the header: without the copy, equal weights from two files give logits that differ in the last bit.
    The copy also protects a long run from changes to the file.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def automatic_batch_size(model: PreTrainedModel, tokens: int) -> int:
    """Rows to generate at once, a power of two, for rows of `tokens` tokens (prompt and reply).

    A row needs about `tokens x width x bytes x (2 x layers + 64)`: the cache, as if every attention head had its own
    keys and values, and the activations of the prompt. The rows share half of the free memory.
    """
    config = model.config.get_text_config()
    row = tokens * config.hidden_size * model.dtype.itemsize * (2 * config.num_hidden_layers + _ACTIVATIONS)
    fitting = max(1, int(_SHARE * free_memory(model.device)) // row)
    limit = MAX_ROWS.get(model.device.type, _DEFAULT_MAX_ROWS)
    return int(min(limit, 2 ** (fitting.bit_length() - 1)))


def total_memory(device: torch.device) -> int:
    """Bytes of a device's memory; on the CPU, of this machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def free_memory(device: torch.device) -> int:
    """Free bytes on a device; on the CPU, the memory available without swapping."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    if _MEMINFO.is_file():
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text("ascii").splitlines() if ":" in line)
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2

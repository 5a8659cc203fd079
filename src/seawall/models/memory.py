"""Telling an exhausted memory from other failures, and how many rows of a batch the free memory holds."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from transformers import PreTrainedModel

T = TypeVar("T")

MOST_ROWS = {"cpu": 64}
"""Rows of an automatic batch by type of device: more bring no more tokens per second."""
_MOST_ROWS = 256
_SHARE = 0.5
"""Of the free memory, for all rows; the rest is for what the estimate leaves out."""
_ACTIVATIONS = 64
"""Vectors of the model's width that a token needs while the prompt is read; on the large side."""
_MEMINFO = Path("/proc/meminfo")


def is_out_of_memory(error: Exception) -> bool:
    """Whether PyTorch ran out of memory: CUDA has a class for it, the CPU and MPS only a message."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in message or "DefaultCPUAllocator" in message)


def unless_out_of_memory(work: Callable[[], T]) -> T | None:
    """What `work` gives, or None when memory ran out; what the attempt held is freed by then, its frames being gone."""
    try:
        return work()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def automatic_batch_size(model: PreTrainedModel, tokens: int) -> int:
    """How many rows of `tokens` tokens (prompt and reply) to generate at once: a power of two.

    A row needs about `tokens x width x bytes x (2 x layers + 64)`: the cache, as if every attention head had keys and
    values of its own, and the activations of the prompt. Half of the free memory is given to the rows.
    """
    config = model.config.get_text_config()
    row = tokens * config.hidden_size * model.dtype.itemsize * (2 * config.num_hidden_layers + _ACTIVATIONS)
    fitting = max(1, int(_SHARE * free_memory(model.device)) // row)
    most = MOST_ROWS.get(model.device.type, _MOST_ROWS)
    return int(min(most, 2 ** (fitting.bit_length() - 1)))


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; on the CPU, what the system can give without swapping."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    if _MEMINFO.is_file():
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text("ascii").splitlines() if ":" in line)
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2

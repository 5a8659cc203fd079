"""The type and the device of the loaded weights, from the words of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import PartialState

from seawall.config.model import ModelConfig
from seawall.errors import ConfigError
from seawall.models.files.checkpoint import TensorHeader
from seawall.models.sharding import sharding_options

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ONE_DEVICE_SHARE = 0.7
"""Weights that exceed this share of one device's free memory are spread: training and the cache need the remainder."""


def requested_dtype(name: str) -> torch.dtype | str:
    """The type of the loaded weights; `auto` keeps the checkpoint's own.

    Raises:
        ConfigError: the name is not a supported type.
    """
    if name == "auto":
        return name
    if name not in DTYPES:
        raise ConfigError("unknown model.dtype", got=name, expected=f"auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def requested_device(name: str) -> torch.device:
    """The device of a name; `auto` is Accelerate's choice for this process: cuda, then mps, then cpu.

    Raises:
        ConfigError: the name is not a device, or this machine lacks the device.
    """
    if name == "auto":
        device: torch.device = PartialState().device
        return device
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError("unknown model.device", got=name, expected="auto, cpu, mps, cuda or cuda:N") from error
    if device.type == "cpu":
        return device
    present = torch.accelerator.current_accelerator()
    count = torch.accelerator.device_count() if present is not None and present.type == device.type else 0
    if (device.index or 0) >= count:
        raise ConfigError(
            f"model.device asks for {name}",
            got=f"{count} devices of type {device.type} that PyTorch {torch.__version__} can use on this machine",
            remedy="set model.device=auto",
        )
    return device


def device_options(config: ModelConfig, needed: int) -> dict[str, Any]:
    """Loading options of transformers: one device, the recipe's map, or every GPU where a model is too large for one.

    With `model.fsdp` each process of the launch gets a part of the weights, on its own device.

    Args:
        config: device, device map and limits of the recipe.
        needed: size of the weights in memory, in bytes.

    Raises:
        ConfigError: as `requested_device` and `sharding_options`.
    """
    if config.fsdp:
        return sharding_options()
    if config.device_map is not None or config.max_memory:
        limits = {int(name) if name.isdigit() else name: limit for name, limit in config.max_memory.items()}
        return {"device_map": config.device_map or "auto", **({"max_memory": limits} if limits else {})}
    device = requested_device(config.device)
    if device.type == "cpu":
        return {}
    spread = config.device == "auto" and device.type == "cuda" and torch.cuda.device_count() > 1
    if spread and PartialState().num_processes == 1 and needed > _ONE_DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
        return {"device_map": "auto"}
    return {"device_map": {"": device}}


def bytes_in_memory(headers: Mapping[str, TensorHeader], dtype: str) -> int:
    """Size of a checkpoint's weights once loaded as `dtype`; any other name than those of `DTYPES` keeps their type."""
    stored = sum(header.bytes for header in headers.values())
    if dtype not in DTYPES:
        return stored
    elements = sum(header.elements for header in headers.values())
    return elements * DTYPES[dtype].itemsize

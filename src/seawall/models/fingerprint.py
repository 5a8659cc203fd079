"""Telling whether two models are the same to the last bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

_WORKERS = 4


def model_fingerprint(model: nn.Module) -> str:
    """`sha256:` and a hex digest of everything in the model's state dict; equal exactly when all of it is.

    It depends neither on the device nor on how a checkpoint is cut into files, but on how this version of transformers
    names and stacks the weights.
    """
    return state_fingerprint(model.state_dict())


def state_fingerprint(state: Mapping[str, Tensor]) -> str:
    """The fingerprint of named tensors: a hash over `name dtype shape digest` lines, sorted by name.

    Tensors that share memory (tied embeddings) are read once, and count like equal copies. One tensor per thread is
    brought to the CPU at a time; nothing else is copied.
    """
    unique = {_place(tensor): tensor for tensor in state.values()}
    with ThreadPoolExecutor(_WORKERS) as pool:
        digests = dict(zip(unique, pool.map(tensor_digest, unique.values()), strict=True))
    lines = [
        f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} {digests[_place(tensor)]}\n"
        for name, tensor in sorted(state.items())
    ]
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def tensor_fingerprint(tensor: Tensor) -> str:
    """`sha256:` and the hex digest of one tensor's type, shape and bytes."""
    return state_fingerprint({"": tensor})


def tensor_digest(tensor: Tensor) -> str:
    """Hex digest of a tensor's bytes in row order, whatever its strides and device. hashlib works without the GIL."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()


def _place(tensor: Tensor) -> tuple[object, ...]:
    """What two tensors share exactly when they are the same numbers in the same memory."""
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())

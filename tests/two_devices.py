"""Two devices in one machine without an accelerator: tensors with real values that claim to lie on `cpu:0` or `cpu:1`.

An operation on tensors of both raises an error, as between two GPUs; only `.to()` and `copy_` cross.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from transformers import PreTrainedModel

from seawall.models.hidden.residual import decoder_layers

FIRST, SECOND = torch.device("cpu", 0), torch.device("cpu", 1)
_CROSSING = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Placed(Tensor):
    """A tensor on a device of these tests."""

    content: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> Placed:
        made: Placed = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device,
            requires_grad=inner.requires_grad,
        )
        made.content = inner.detach()
        return made

    def __init__(self, inner: Tensor, device: torch.device) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {})


@contextmanager
def two_devices() -> Iterator[None]:
    """Inside, tensors made on `cpu:0` or `cpu:1` are placed there; plain CPU tensors mix with neither."""
    with _Operations(), _Constructors():  # type: ignore[no-untyped-call]
        yield


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Constructors(TorchFunctionMode):
    """Calls that reach no dispatcher: `torch.tensor` with its device, and `tolist`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.tolist and isinstance(args[0], Placed):
            return args[0].content.tolist()
        device = torch.device((kwargs or {}).get("device") or "cpu") if func is torch.tensor else None
        if device is None or device.index is None:
            return func(*args, **(kwargs or {}))
        return Placed(func(*args, **{**(kwargs or {}), "device": "cpu"}), device)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    indexing = func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)
    devices = {tensor.device for tensor in tensors if tensor.dim() > 0 and not (indexing and _place(tensor.device) < 0)}
    placed = [tensor.device for tensor in tensors if isinstance(tensor, Placed)]
    if func not in _CROSSING and len({_place(device) for device in devices}) > 1:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found {sorted(map(str, devices))}: {func}"
        )
    asked = kwargs.get("device")
    target = asked if asked is not None else placed[0] if placed else None
    inner_args, inner_kwargs = tree_map(_unwrapped, (args, kwargs))
    if asked is not None:
        inner_kwargs["device"] = torch.device("cpu")
    output = func(*inner_args, **inner_kwargs)
    if func is torch.ops.aten.copy_.default:
        return args[0]
    if target is None or target.index is None:
        return output
    mutated = {id(_unwrapped(tensor)): tensor for tensor in tensors}
    return tree_map(lambda leaf: _wrapped(leaf, target, mutated), output)


def _place(device: torch.device) -> int:
    return -1 if device.index is None else device.index


def _unwrapped(leaf: Any) -> Any:
    return leaf.content if isinstance(leaf, Placed) else leaf


def _wrapped(leaf: Any, device: torch.device, mutated: dict[int, Tensor]) -> Any:
    if not isinstance(leaf, Tensor) or isinstance(leaf, Placed):
        return leaf
    return mutated.get(id(leaf)) if id(leaf) in mutated else Placed(leaf, device)


def on(device: torch.device, tensor: Tensor) -> Tensor:
    """A copy of a tensor on a device."""
    return Placed(tensor.detach().clone(), device)


def spread(model: PreTrainedModel) -> None:
    """Places the first half of a model's decoder layers on the first device and everything after it on the second.

    Accelerate's hooks move the inputs of each part, as `from_pretrained(device_map=...)` has them do.
    """
    blocks = decoder_layers(model)
    names = {id(module): name for name, module in model.named_modules()}
    devices = {"": FIRST}
    devices |= {names[id(block)]: FIRST if index < len(blocks) // 2 else SECOND for index, block in enumerate(blocks)}
    parent = names[id(blocks)].rpartition(".")[0]
    last = [f"{parent}.{name}" for name, _ in model.get_submodule(parent).named_children() if "norm" in name]
    devices |= dict.fromkeys([*last, names[id(model.get_output_embeddings())]], SECOND)
    for name, module in model.named_modules():
        device = next(devices[prefix] for prefix in _prefixes(name) if prefix in devices)
        for key, parameter in module.named_parameters(recurse=False):
            module._parameters[key] = nn.Parameter(on(device, parameter))
        for key, buffer in module.named_buffers(recurse=False):
            module._buffers[key] = on(device, buffer)
    for name, device in devices.items():
        hook = _Hook(device, io_same_device=not name, skip_keys="past_key_values")
        add_hook_to_module(model.get_submodule(name), hook)


class _Hook(AlignDevicesHook):  # type: ignore[misc]
    """Accelerate's hook of a part of a model, whose tensors are there already."""

    def init_hook(self, module: nn.Module) -> nn.Module:
        return module


def _prefixes(name: str) -> Iterator[str]:
    """The name and those of the modules around it, innermost first; the model itself last."""
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""

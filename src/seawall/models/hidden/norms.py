"""Norms of a model, found by what they read, and the factor that they give each dimension.

Legend: B rows, T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def norm_scale(norm: nn.Module, like_BTD: Tensor) -> Tensor:
    """The factor of each dimension (D,), float64: an RMS or layer norm's weight, however the family stores it.

    Read from the norm's output for a vector of plus and minus 1, which has mean 0 and root mean square 1.

    Args:
        norm: the norm.
        like_BTD: hidden states of its width, dtype and device.
    """
    signs_D = torch.ones_like(like_BTD[0, 0])
    signs_D[1::2] = -1
    scaled_D, offset_D = norm(signs_D[None, None])[0, 0], norm(torch.zeros_like(signs_D)[None, None])[0, 0]
    scale_D: Tensor = (scaled_D - offset_D) * signs_D
    return scale_D.double()


@contextmanager
def readers_of(root: nn.Module, tensors: Sequence[Tensor]) -> Iterator[list[nn.Module]]:
    """Inside, the norms under `root` are listed that are called with the last of these very tensors.

    Args:
        root: the module to search.
        tensors: filled while the model runs.
    """
    readers: list[nn.Module] = []

    def see(module: nn.Module, args: tuple[Any, ...]) -> None:
        if tensors and args and args[0] is tensors[-1]:
            readers.append(module)

    with ExitStack() as hooks:
        for module in root.modules():
            if any(parameter.ndim == 1 for parameter in module.parameters(recurse=False)):
                hooks.callback(module.register_forward_pre_hook(see).remove)
        yield readers


@contextmanager
def norms_before(blocks: Sequence[tuple[nn.Module, nn.Module]]) -> Iterator[dict[nn.Module, nn.Module]]:
    """Inside, a forward pass fills half -> the norm among its layer's children whose output is the half's input.

    Args:
        blocks: (decoder layer, half of it).
    """
    norms: dict[nn.Module, nn.Module] = {}
    outputs: list[tuple[nn.Module, Any]] = []

    def see_norm(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs.append((module, output))

    def see_half(half: nn.Module) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            readers = [norm for norm, output in outputs if output is hidden]
            if readers:
                norms[half] = readers[-1]
            outputs.clear()

        return hook

    siblings = [child for layer, half in blocks for child in layer.children() if child is not half]
    with ExitStack() as hooks:
        for child in siblings:
            hooks.callback(child.register_forward_hook(see_norm).remove)
        for _, half in blocks:
            hooks.callback(half.register_forward_pre_hook(see_half(half), with_kwargs=True).remove)
        yield norms

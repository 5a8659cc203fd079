"""Resumes forward passes at an inner layer: the layers below run once, for many changes above.

Legend: B rows of the batch, R repeats, T positions, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from seawall.errors import ConfigError, SeawallError
from seawall.models.hidden.residual import decoder_layers, require_layers
from seawall.models.moe.calls import Arguments, hidden_input, replaced_forward, with_hidden_input


@final
@dataclass(eq=False)
class BlockInputs:
    """The inputs of decoder layers in the last forward pass, before any change at that layer.

    Attributes:
        inputs: decoder layer -> its input (B, T, D). Layer 0 is always included, to tell one batch from another.
    """

    inputs: dict[int, Tensor] = field(default_factory=dict)


@contextmanager
def record_block_inputs(model: PreTrainedModel, layers: Sequence[int] | None = None) -> Iterator[BlockInputs]:
    """Records the inputs that `resumed` needs; each forward pass replaces the previous record.

    Args:
        model: any model with one stack of decoder layers.
        layers: decoder layers to resume at; None means all. Each keeps one tensor (B, T, D).

    Raises:
        UnsupportedModelError: the decoder layers cannot be identified.
        ConfigError: the model lacks a layer.
    """
    blocks = decoder_layers(model)
    chosen = range(len(blocks)) if layers is None else sorted({0, *layers})
    require_layers(chosen, len(blocks))
    recording = BlockInputs()

    def recorder(layer: int) -> Callable[..., None]:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if layer == 0:
                recording.inputs.clear()
            recording.inputs[layer] = hidden_input(args, kwargs).detach()

        return hook

    with ExitStack() as hooks:
        for layer in chosen:
            handle = blocks[layer].register_forward_pre_hook(recorder(layer), with_kwargs=True, prepend=True)
            hooks.callback(handle.remove)
        yield recording


@contextmanager
def resumed(model: PreTrainedModel, recording: BlockInputs, layer: int, *, repeats: int = 1) -> Iterator[None]:
    """Inside, forward passes start at decoder layer `layer` from its recorded input; the layers below do not run.

    Call the model with the recorded batch repeated, as `ids_BT.repeat(repeats, 1)` (mask and positions likewise): row
    `r * B + b` is repeat r of row b. Per-row coefficients are then `coefficients_R.repeat_interleave(B)`. Changes at
    `layer` and above act as usual; those below have no effect, and recorders of the layers below (`capture`, unless it
    streams, and `capture_residual`) see no pass.

    Args:
        model: the model of the recording.
        recording: made by `record_block_inputs`; it may record another pass meanwhile.
        layer: decoder layer to start at.
        repeats: R.

    Raises:
        ConfigError: the layer was not recorded.
        SeawallError (in the forward pass): the batch differs from the recorded one, or the model generates.
    """
    blocks = decoder_layers(model)
    _require_recorded(recording, layer)
    start = _Start(recording.inputs[0], recording.inputs[layer], repeats)
    with ExitStack() as stack:
        for block in blocks[:layer]:
            stack.enter_context(replaced_forward(block, _pass_on))
        # Before every other hook: a change at this layer applies to the recorded input, and must not be overwritten.
        check = blocks[0].register_forward_pre_hook(start.check, with_kwargs=True, prepend=True)
        stack.callback(check.remove)
        if layer:
            swap = blocks[layer].register_forward_pre_hook(start.swap, with_kwargs=True, prepend=True)
            stack.callback(swap.remove)
        yield


def _require_recorded(recording: BlockInputs, layer: int) -> None:
    if layer not in recording.inputs:
        recorded = ", ".join(map(str, sorted(recording.inputs))) or "none"
        raise ConfigError(
            f"no pass can start at decoder layer {layer}",
            got=f"recorded layers {recorded}",
            expected="a layer with a recorded input",
            remedy="run the batch inside record_block_inputs() with this layer among its layers",
        )


def _pass_on(*args: Any, **kwargs: Any) -> Tensor:
    return hidden_input(args, kwargs)


@final
class _Start:
    """The hooks of a resumed pass: `check` compares the batch with the recorded one, `swap` replaces the input."""

    def __init__(self, first_BTD: Tensor, input_BTD: Tensor, repeats: int) -> None:
        self._first_BTD = first_BTD
        self._input_BTD = input_BTD
        self._repeats = repeats

    def check(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = hidden_input(args, kwargs)
        batch, positions, width = self._first_BTD.shape
        if hidden.shape != (self._repeats * batch, positions, width):
            raise SeawallError(
                "the recording belongs to another batch",
                got=f"{len(hidden)} rows of {hidden.shape[1]} tokens",
                expected=f"{self._repeats} times the {batch} recorded rows of {positions} tokens",
                remedy="run ids.repeat(repeats, 1) of the recorded batch, as single forward passes",
            )
        if not torch.equal(hidden.view(self._repeats, *self._first_BTD.shape), self._repeated(self._first_BTD)):
            raise SeawallError(
                "the recording belongs to another batch",
                got="other tokens",
                expected="the recorded tokens, the whole batch repeated",
                remedy="run ids.repeat(repeats, 1) of the recorded batch",
            )

    def swap(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        cache = kwargs.get("past_key_values")
        if cache is not None:
            raise SeawallError(
                "a resumed pass fills no key-value cache",
                got="a forward pass with a cache",
                expected="use_cache=False",
            )
        hidden = self._repeated(self._input_BTD).flatten(0, 1)
        return with_hidden_input(hidden, args, kwargs)

    def _repeated(self, recorded_BTD: Tensor) -> Tensor:
        return recorded_BTD.expand(self._repeats, *recorded_BTD.shape)

"""Checks that decoder layers add the outputs of their halves to the residual stream, by the factor that they state.

Legend: B rows, T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from seawall.errors import UnsupportedModelError
from seawall.models.hidden.sublayers import Block, decoder_blocks, first_output, with_first_output, written_changed
from seawall.models.moe.calls import Arguments, hidden_input, replaced_forward, with_hidden_input

_TOKENS = 6
_TOLERANCE = 0.1
"""Largest relative error of a shift; half precision rounds by about a hundredth."""


@torch.no_grad()
def require_separate_halves(model: PreTrainedModel) -> None:
    """Refuse a model whose halves cannot be changed apart from the residual stream.

    Each layer runs once more with the outputs of its halves held fixed. A shift of its input must then reach its output
    unchanged: where it does not, a half's output contains the stream (BLOOM, MPT), or the layer normalises their sum. A
    shift of what a half writes must arrive times the layer's residual multiplier.

    Raises:
        UnsupportedModelError: a layer is of another kind; names it. Or the halves cannot be identified.
    """
    blocks = decoder_blocks(model)
    calls, outputs = dict[int, Arguments](), dict[nn.Module, Any]()
    with ExitStack() as hooks:
        for block in blocks:
            hook = _reader(calls, block.index)
            hooks.callback(block.block.register_forward_pre_hook(hook, with_kwargs=True).remove)
            for half in (block.attention, block.mlp):
                hooks.callback(half.register_forward_hook(_recorder(outputs)).remove)
        tokens = torch.arange(1, 1 + _TOKENS, device=model.device) % model.config.get_text_config().vocab_size
        model(input_ids=tokens[None], use_cache=False)
    for block in blocks:
        _check(block, calls[block.index], outputs)


def _check(block: Block, call: Arguments, outputs: dict[nn.Module, Any]) -> None:
    hidden_BTD = hidden_input(*call)
    generator = torch.Generator().manual_seed(block.index)
    noise_BTD = torch.randn(hidden_BTD.shape, generator=generator).to(hidden_BTD.device, hidden_BTD.dtype)
    shift_BTD = noise_BTD * hidden_BTD.float().std().clamp_min(1e-3).to(hidden_BTD.dtype)
    with ExitStack() as stack:
        for half in (block.attention, block.mlp):
            stack.enter_context(replaced_forward(half, _constant(outputs[half])))
        plain_BTD = _run(block, call)
        moved_BTD = _run(block, with_hidden_input(hidden_BTD + shift_BTD, *call)) - plain_BTD
        if _error(moved_BTD, shift_BTD, 1.0) > _TOLERANCE:
            raise UnsupportedModelError(
                f"the attention and the MLP of decoder layer {block.index} ({type(block.block).__name__}) cannot be "
                "changed apart from the residual stream",
                got="an output of a half that contains the stream, or a norm over the sum, as in BLOOM and MPT",
                expected="a layer that adds the outputs of its halves to its input",
                remedy="use a model whose layers do, such as Llama, Qwen or Mixtral",
            )
        for half in (block.attention, block.mlp):
            with written_changed(block, half, lambda output: output + shift_BTD.view(output.shape)):
                moved_BTD = _run(block, call) - plain_BTD
            if _error(moved_BTD, shift_BTD, block.multiplier) > _TOLERANCE:
                factor = (moved_BTD.float() * shift_BTD.float()).sum() / shift_BTD.float().square().sum()
                raise UnsupportedModelError(
                    f"decoder layer {block.index} ({type(block.block).__name__}) scales what its halves write",
                    got=f"a factor of about {factor.item():.3g}",
                    expected=f"{block.multiplier:g}, its residual_multiplier (1 where it has none)",
                )


def _error(moved_BTD: Tensor, shift_BTD: Tensor, factor: float) -> float:
    expected_BTD = factor * shift_BTD.float()
    return float((moved_BTD.float() - expected_BTD).norm() / expected_BTD.norm())


def _run(block: Block, call: Arguments) -> Tensor:
    args, kwargs = call
    return first_output(block.block(*args, **kwargs))


def _reader(calls: dict[int, Arguments], index: int) -> Callable[..., None]:
    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[index] = args, kwargs

    return hook


def _recorder(outputs: dict[nn.Module, Any]) -> Callable[..., None]:
    def hook(half: nn.Module, inputs: Any, output: Any) -> None:
        outputs[half] = _copied(output)

    return hook


def _constant(output: Any) -> Callable[..., Any]:
    return lambda *_, **__: _copied(output)


def _copied(output: Any) -> Any:
    """The output with its hidden states copied: some layers (Falcon) add to them in place."""
    return with_first_output(output, first_output(output).clone())

"""The two halves of each decoder layer, found by structure: the attention, and the MLP or mixture of experts.

Legend: B rows of the batch, T positions, D model width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn
from transformers import PreTrainedModel

from seawall.errors import UnsupportedModelError
from seawall.models.hidden.residual import decoder_layers
from seawall.models.moe.calls import hidden_input, with_hidden_input

Change = Callable[[Tensor], Tensor]
"""Hidden states (B, T, D) -> hidden states (B, T, D)."""

_TOKEN_MIXING = frozenset({"attention_mask", "past_key_values", "cache_params", "position_embeddings", "layer_past"})
"""Arguments of the forward of a module that reads other tokens."""


@dataclass(frozen=True, eq=False)
class Block:
    """One decoder layer.

    Attributes:
        index: position among the decoder layers.
        block: the layer itself.
        attention: the half that reads other tokens.
        mlp: the half that reads each token alone: a dense MLP, or the MoE block with its router.
        multiplier: factor of both halves' outputs on their way to the residual stream (Granite's residual multiplier).
    """

    index: int
    block: nn.Module
    attention: nn.Module
    mlp: nn.Module
    multiplier: float = 1.0


def decoder_blocks(model: PreTrainedModel) -> tuple[Block, ...]:
    """The decoder layers and their halves, in dense and MoE models, identified by the signatures of their forwards.

    Raises:
        UnsupportedModelError: the decoder layers cannot be identified, or one is not an attention and an MLP.
    """
    return tuple(_block(index, layer) for index, layer in enumerate(decoder_layers(model)))


def layer_attentions(model: PreTrainedModel) -> dict[int, nn.Module]:
    """The attention of each decoder layer that has exactly one, by index, whatever else the layer consists of.

    Raises:
        UnsupportedModelError: the decoder layers cannot be identified.
    """
    attentions = {
        index: [child for child in layer.children() if has_matrix(child) and mixes_tokens(child)]
        for index, layer in enumerate(decoder_layers(model))
    }
    return {index: modules[0] for index, modules in attentions.items() if len(modules) == 1}


def _block(index: int, layer: nn.Module) -> Block:
    parts = {name: child for name, child in layer.named_children() if has_matrix(child)}
    attention = [name for name, child in parts.items() if mixes_tokens(child)]
    mlp = [name for name in parts if name not in attention]
    if len(attention) != 1 or len(mlp) != 1:
        raise UnsupportedModelError(
            f"the halves of decoder layer {index} ({type(layer).__name__}) cannot be identified",
            got=f"attention {', '.join(attention) or 'none'}; MLP {', '.join(mlp) or 'none'}",
            expected="one attention and one MLP or mixture of experts",
            remedy="use a model whose decoder layers are attention followed by an MLP, such as Llama, Qwen or Mixtral",
        )
    multiplier = float(vars(layer).get("residual_multiplier", 1.0))
    return Block(index, layer, parts[attention[0]], parts[mlp[0]], multiplier)


def has_matrix(module: nn.Module) -> bool:
    """Whether the module has a weight matrix; norms, dropout and activations have none."""
    return any(parameter.ndim >= 2 for parameter in module.parameters())


def is_projection(module: nn.Module) -> bool:
    """Whether it is a single matrix, and no gate with one number per token."""
    return isinstance(module, nn.Linear) and module.out_features > 1


def mixes_tokens(module: nn.Module) -> bool:
    """Whether the module reads other tokens, by the arguments of its forward."""
    return not _TOKEN_MIXING.isdisjoint(inspect.signature(type(module).forward).parameters)


def first_output(output: Any) -> Tensor:
    """The hidden states in a module's output, which may be a tuple that begins with them."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def with_first_output(output: Any, hidden: Tensor) -> Any:
    """The output with its hidden states replaced."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@contextmanager
def output_changed(module: nn.Module, change: Change) -> Iterator[None]:
    """Inside, the module returns `change(its hidden states)`; `written_changed` acts after this."""

    def hook(_: nn.Module, inputs: Any, output: Any) -> Any:
        return with_first_output(output, change(first_output(output)))

    handle = module.register_forward_hook(hook, prepend=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def input_changed(block: Block, change: Change) -> Iterator[None]:
    """Inside, the decoder layer receives `change(its input)`, and adds its own output to that."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return with_hidden_input(change(hidden_input(args, kwargs)), args, kwargs)

    handle = block.block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def written_changed(block: Block, half: nn.Module, change: Change) -> Iterator[None]:
    """Inside, the half's contribution to the residual stream is changed: its output, or that of a norm after it.

    Gemma 2 and 3, OLMo 2 and GLM-4 (dense) have a norm between a half and the stream, which would undo a change before
    it. Such a norm is identified in the forward pass: its input is the very tensor that the half returned.
    """
    writing = _Writing(change)
    with ExitStack() as hooks:
        hooks.callback(half.register_forward_hook(writing.after_half).remove)
        for child in block.block.children():
            if child not in (block.attention, block.mlp):
                # The latest change runs first here, because it received the output of the earlier ones.
                hooks.callback(child.register_forward_pre_hook(writing.before_norm, prepend=True).remove)
                hooks.callback(child.register_forward_hook(writing.after_norm).remove)
        yield


@final
class _Writing:
    """One change on its way from a half to the residual stream."""

    def __init__(self, change: Change) -> None:
        self._change = change
        self._plain: Tensor | None = None
        self._changed: Tensor | None = None
        self._norm: nn.Module | None = None

    def after_half(self, half: nn.Module, inputs: Any, output: Any) -> Any:
        self._plain = first_output(output)
        self._changed = self._change(self._plain)
        return with_first_output(output, self._changed)

    def before_norm(self, norm: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._changed is None or not args or args[0] is not self._changed:
            return None
        plain, self._norm, self._plain, self._changed = self._plain, norm, None, None
        return (plain, *args[1:])

    def after_norm(self, norm: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        if self._norm is not norm:
            return None
        self._norm = None
        return self._change(output)

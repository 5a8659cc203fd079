"""Starts forward passes at an inner layer from a recorded hidden state, without running the layers below.

Legend: B rows, T positions, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from seawall.models.hidden.residual import capture_residual, decoder_layers
from seawall.models.moe.calls import Arguments, hidden_input, replaced_forward, with_hidden_input

_ROWS, _TOKENS = 3, 5
"""Size of the pass that tells whether a model can be entered: no family's layers return three outputs."""
_TOLERANCE = 1e-2
"""Largest difference of logits, in units of their spread, that rounding explains."""


@contextmanager
def enter_at_layer(model: PreTrainedModel, layer: int, hidden_BTD: Float[Tensor, "B T D"]) -> Iterator[None]:
    """Inside, decoder layer `layer` receives `hidden_BTD` as its input, and the layers below do not run.

    Call the model with the tokens, mask and positions that the hidden states were recorded with. The output equals that
    of a full pass only where hidden states are all that passes between layers: see `can_enter_at_layer`.
    """
    blocks = decoder_layers(model)
    with ExitStack() as changes:
        for block in blocks[:layer]:
            changes.enter_context(replaced_forward(block, _pass_on))
        changes.callback(blocks[layer].register_forward_pre_hook(_substitute(hidden_BTD), with_kwargs=True).remove)
        yield


@contextmanager
def only_below(model: PreTrainedModel, layer: int) -> Iterator[None]:
    """Inside, decoder layer `layer` and those above it pass on their input without running."""
    with ExitStack() as changes:
        for block in decoder_layers(model)[layer:]:
            changes.enter_context(replaced_forward(block, _pass_on))
        yield


def can_enter_at_layer(model: PreTrainedModel, layer: int | None = None) -> bool:
    """Whether hidden states are all that passes between the model's decoder layers.

    Some families share keys and values across layers, feed separate embeddings to every layer, or return more than
    hidden states from a layer (the tokens that an indexer chose, the state of a router). The configuration tells the
    first two; a pass of a few tokens, entered with its own hidden states, tells the rest.

    Args:
        model: a loaded model, outside of recordings and changes of it.
        layer: decoder layer to enter at; None tries the middle one.
    """
    config = model.config.get_text_config()
    if getattr(config, "num_kv_shared_layers", 0) or getattr(config, "hidden_size_per_layer_input", 0):
        return False
    layer = len(decoder_layers(model)) // 2 if layer is None else layer
    was_training = model.training
    model.eval()
    try:
        return layer == 0 or _same_from(model, layer)
    except torch.OutOfMemoryError:
        raise  # memory, not the family, is at fault
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):  # a layer returns more than hidden states
        return False
    finally:
        model.train(was_training)


@torch.no_grad()
def _same_from(model: PreTrainedModel, layer: int) -> bool:
    size = int(model.get_input_embeddings().weight.shape[0])
    ids_BT = (torch.arange(_ROWS * _TOKENS, device=model.device).view(_ROWS, _TOKENS) * 7 + 3) % size
    with capture_residual(model, [layer]) as trace:
        expected_BTV = model(ids_BT, use_cache=False).logits.float()
    with enter_at_layer(model, layer, trace.inputs[layer]):
        entered_BTV = model(ids_BT, use_cache=False).logits.float()
    difference = (entered_BTV - expected_BTV).abs().max()
    return bool(difference <= _TOLERANCE * expected_BTV.std())


def _pass_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def _substitute(hidden_BTD: Tensor) -> Any:
    def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        return with_hidden_input(hidden_BTD.to(hidden_input(args, kwargs).device), args, kwargs)

    return hook

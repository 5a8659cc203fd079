"""Starts forward passes at an inner layer from a recorded hidden state, without running the layers below.

Legend: B rows, T positions, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from seawall.models.hidden.residual import decoder_layers
from seawall.models.moe.calls import Arguments, replaced_forward, with_hidden_input


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


def can_enter_at_layer(model: PreTrainedModel) -> bool:
    """Whether, by its configuration, hidden states are all that passes between the model's decoder layers.

    Some families share keys and values across layers, or feed separate embeddings to every layer.
    """
    config = model.config.get_text_config()
    shared = getattr(config, "num_kv_shared_layers", 0) or getattr(config, "hidden_size_per_layer_input", 0)
    return not shared


def _pass_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def _substitute(hidden_BTD: Tensor) -> Any:
    def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        return with_hidden_input(hidden_BTD, args, kwargs)

    return hook

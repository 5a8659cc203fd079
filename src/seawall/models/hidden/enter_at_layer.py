"""Beginning a forward pass in the middle of a model, where what the layers below give is known already.

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
    """Inside, decoder layer `layer` gets `hidden_BTD` as its input, and the layers below do not run.

    The model must still be called with the tokens, mask and positions that the input belongs to. It gives what it gave
    when the input was recorded only where nothing else passes from the layers below to those above: see
    `can_enter_at_layer`.
    """
    blocks = decoder_layers(model)
    with ExitStack() as changes:
        for block in blocks[:layer]:
            changes.enter_context(replaced_forward(block, _pass_on))
        changes.callback(blocks[layer].register_forward_pre_hook(_substitute(hidden_BTD), with_kwargs=True).remove)
        yield


def can_enter_at_layer(model: PreTrainedModel) -> bool:
    """Whether hidden states are all that passes between decoder layers, as far as the configuration says.

    Some families share keys and values across layers, or give every layer embeddings of its own.
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

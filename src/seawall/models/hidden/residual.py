"""The residual stream: the inputs of the decoder layers.

Shapes: `B` prompts, `T` positions, `D` model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from seawall.errors import ConfigError, UnsupportedModelError
from seawall.models.moe.calls import hidden_input


@dataclass(eq=False)
class ResidualTrace:
    """The inputs of decoder layers in the last forward pass.

    Attributes:
        inputs: decoder layer -> its input (B, T, D).
    """

    inputs: dict[int, Tensor] = field(default_factory=dict)


@contextmanager
def capture_residual(
    model: PreTrainedModel, layers: Sequence[int] | None = None, *, detach: bool = True
) -> Iterator[ResidualTrace]:
    """Records the inputs of decoder layers while the model runs; each forward pass replaces the previous record.

    Args:
        model: any model with one stack of decoder layers.
        layers: decoder layers, counted from 0; None records all.
        detach: detach the recorded tensors from the autograd graph.

    Raises:
        UnsupportedModelError: the decoder layers cannot be identified.
        ConfigError: the model lacks a layer.
    """
    blocks = decoder_layers(model)
    chosen = range(len(blocks)) if layers is None else layers
    require_layers(chosen, len(blocks))
    trace = ResidualTrace()
    with ExitStack() as hooks:
        for layer in chosen:
            hook = blocks[layer].register_forward_pre_hook(_recorder(trace, layer, detach=detach), with_kwargs=True)
            hooks.callback(hook.remove)
        yield trace


def require_layers(layers: Iterable[int], count: int) -> None:
    """Checks that a model of `count` decoder layers has these layers.

    Raises:
        ConfigError: it lacks one.
    """
    unknown = [layer for layer in layers if not 0 <= layer < count]
    if unknown:
        raise ConfigError(f"decoder layer {unknown[0]} does not exist", expected=f"0 to {count - 1}")


def _recorder(trace: ResidualTrace, layer: int, *, detach: bool) -> Callable[..., None]:
    def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden_BTD = hidden_input(args, kwargs)
        trace.inputs[layer] = hidden_BTD.detach() if detach else hidden_BTD

    return hook


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers: the only outermost module list of the configured length.

    Raises:
        UnsupportedModelError: the model has no such list, or several.
    """
    expected = int(model.config.get_text_config().num_hidden_layers)
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == expected
    }
    outer = [name for name in lists if not any(name.startswith(f"{parent}.") for parent in lists)]
    if len(outer) != 1:
        raise UnsupportedModelError(
            f"the decoder layers of {type(model).__name__} cannot be identified",
            got=f"{len(outer)} lists of {expected} modules ({', '.join(outer) or 'none'})",
            expected="one list of num_hidden_layers modules",
        )
    return lists[outer[0]]

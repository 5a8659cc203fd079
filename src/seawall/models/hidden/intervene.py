"""Moves hidden states along directions while a model runs. Every change lives in a `with`; weights never change.

The changes compose with each other, with generation and with `capture`. They are computed in float32 and rounded once
to the model's precision. Each row of a batch changes independently: a coefficient that causes NaN or infinity gives
non-finite logits in its own row alone. Greedy generation hides this (the argmax of NaN is a token), so check
`torch.isfinite(logits)` of one forward pass first.

Legend: B rows of the batch, T positions, D model width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, final

from torch import Tensor, nn
from transformers import PreTrainedModel

from seawall.errors import ConfigError, SeawallError
from seawall.models.hidden.residual import require_layers
from seawall.models.hidden.sublayers import (
    Block,
    Change,
    decoder_blocks,
    input_changed,
    written_changed,
)

Site = Literal["residual", "attention", "mlp"]
"""The input of a decoder layer; the output of its attention, or of its MLP or MoE block, to the residual stream."""
SITES: tuple[Site, ...] = ("residual", "attention", "mlp")


@final
@dataclass(frozen=True, eq=False)
class Addition:
    """A direction added to every token at one site.

    Attributes:
        layer: decoder layer.
        vector_D: the direction; it is not normalised.
        coefficient: factor of the direction; negative to suppress. A tensor (B,) gives each row of the batch its own,
            in single forward passes only, because rows leave a batch during generation.
        site: where in the layer.
    """

    layer: int
    vector_D: Tensor
    coefficient: float | Tensor = 1.0
    site: Site = "residual"


@contextmanager
def added(model: PreTrainedModel, additions: Sequence[Addition]) -> Iterator[None]:
    """Inside, `x <- x + coefficient * vector` on every token, padding included, at each addition's site.

    At a half this is the shift that arrives in the residual stream, whatever the family multiplies outputs by.

    Raises:
        UnsupportedModelError: the decoder layers or their halves cannot be identified.
        ConfigError: the model lacks a layer, or a vector has another width.
        SeawallError (in the forward pass): per-row coefficients with another number of rows, or with generation.
    """
    blocks = decoder_blocks(model)
    for addition in additions:
        require_layers([addition.layer], len(blocks))
        require_width(model, addition.vector_D)
    with ExitStack() as stack:
        if any(is_per_row(addition.coefficient) for addition in additions):
            stack.enter_context(single_passes_only(model))
        for addition in additions:
            block = blocks[addition.layer]
            # A half's output is multiplied on its way to the stream (Granite), so the shift is divided first.
            factor = 1.0 if addition.site == "residual" else block.multiplier
            change = _adding(addition.vector_D.detach().float() / factor, addition.coefficient)
            stack.enter_context(_changed(block, addition.site, change))
        yield


@contextmanager
def ablated(
    model: PreTrainedModel,
    direction_D: Tensor,
    *,
    layers: Collection[int] | None = None,
    sites: Collection[Site] = SITES,
) -> Iterator[None]:
    """Inside, hidden states have no component along the direction at the given sites.

    With all sites in all layers, nothing along the direction reaches the output. With `residual` alone, the last layer
    can still write along it.

    Args:
        model: any model whose decoder layers have an attention and an MLP.
        direction_D: the direction, of any length.
        layers: decoder layers; None means all.
        sites: where in each layer.

    Raises:
        UnsupportedModelError: the decoder layers or their halves cannot be identified.
        ConfigError: the model lacks a layer, or the direction has another width or no length.
    """
    blocks = decoder_blocks(model)
    chosen = range(len(blocks)) if layers is None else sorted(set(layers))
    require_layers(chosen, len(blocks))
    change = ablation(model, direction_D)
    with ExitStack() as stack:
        for layer, site in product(chosen, (site for site in SITES if site in sites)):
            stack.enter_context(_changed(blocks[layer], site, change))
        yield


def ablation(model: PreTrainedModel, direction_D: Tensor) -> Change:
    """The change that removes the component along a direction.

    Raises:
        ConfigError: the direction has another width than the model, or no length.
    """
    require_width(model, direction_D)
    direction_D = direction_D.detach().float()
    length = direction_D.norm()
    if not (length.isfinite() and length > 0):
        raise ConfigError("the direction to ablate has no length", got=f"{length.item():g}", expected="above 0")
    return _ablating(direction_D / length)


def _changed(block: Block, site: Site, change: Change) -> AbstractContextManager[None]:
    if site == "residual":
        return input_changed(block, change)
    return written_changed(block, block.attention if site == "attention" else block.mlp, change)


def _adding(vector_D: Tensor, coefficient: float | Tensor) -> Change:
    def change(hidden_BTD: Tensor) -> Tensor:
        shift = per_row(coefficient, hidden_BTD) * vector_D.to(hidden_BTD.device)
        return (hidden_BTD + shift).to(hidden_BTD.dtype)

    return change


def _ablating(unit_D: Tensor) -> Change:
    def change(hidden_BTD: Tensor) -> Tensor:
        wide_BTD, along_D = hidden_BTD.float(), unit_D.to(hidden_BTD.device)
        component_BT1 = (wide_BTD @ along_D).unsqueeze(-1)
        return (wide_BTD - component_BT1 * along_D).to(hidden_BTD.dtype)

    return change


def is_per_row(coefficient: float | Tensor) -> bool:
    """Whether each row of the batch has its own coefficient."""
    return isinstance(coefficient, Tensor) and coefficient.ndim > 0


def per_row(coefficient: float | Tensor, hidden_BTD: Tensor) -> float | Tensor:
    """The coefficient, shaped for multiplication with hidden states.

    Raises:
        SeawallError: per-row coefficients, and another number of rows.
    """
    if not isinstance(coefficient, Tensor):
        return coefficient
    coefficient = coefficient.detach().float().to(hidden_BTD.device)
    if not coefficient.ndim:
        return coefficient
    if coefficient.shape != hidden_BTD.shape[:1]:
        raise SeawallError(
            "the coefficients belong to another batch",
            got=f"coefficients {tuple(coefficient.shape)} for {len(hidden_BTD)} rows",
            expected="one number, or one per row of the batch",
        )
    return coefficient[:, None, None]


@contextmanager
def single_passes_only(model: PreTrainedModel) -> Iterator[None]:
    """Inside, a forward pass that continues a key-value cache is an error."""

    def hook(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("past_key_values") is not None:
            raise SeawallError(
                "per-row coefficients cannot be used in generation",
                got="a forward pass that continues a key-value cache",
                expected="single forward passes",
                remedy="generate once per coefficient, with one number for all rows",
            )

    handle = model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def require_width(model: PreTrainedModel, vector_D: Tensor) -> None:
    """Refuse a direction of another width.

    Raises:
        ConfigError: the width is not the model's.
    """
    width = int(model.config.get_text_config().hidden_size)
    if vector_D.shape != (width,):
        raise ConfigError(
            "the direction does not fit the model",
            got=f"shape {tuple(vector_D.shape)}",
            expected=f"({width},), the model's width",
            remedy="extract directions from this model",
        )

"""Moves hidden states along directions while a model runs. Every change lives in a `with`; weights never change.

The changes compose with each other, with generation and with `capture`. They are computed in float32 and rounded once
to the model's precision. Each row of a batch changes independently: a coefficient that causes NaN or infinity gives
non-finite logits in its own row alone. Greedy generation hides this (the argmax of NaN is a token), so check
`torch.isfinite(logits)` of one forward pass first.

Legend: B rows of the batch, T positions, D model width, E routed experts of a layer, K experts per token, X experts of
an addition.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from seawall.errors import ConfigError, SeawallError
from seawall.models.hidden.residual import require_layers
from seawall.models.hidden.sublayers import (
    Block,
    Change,
    decoder_blocks,
    input_changed,
    output_changed,
    written_changed,
)
from seawall.models.moe.calls import call_reader, logits_reader
from seawall.models.moe.find import MoELayer, MoEModel
from seawall.models.moe.gates import GateRule, closest_rule, gate_probabilities

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
        _require_width(model, addition.vector_D)
    with ExitStack() as stack:
        if any(_is_per_row(addition.coefficient) for addition in additions):
            stack.enter_context(single_passes_only(model))
        for addition in additions:
            block = blocks[addition.layer]
            # A half's output is multiplied on its way to the stream (Granite), so the shift is divided first.
            factor = 1.0 if addition.site == "residual" else block.multiplier
            change = _adding(addition.vector_D.detach().float() / factor, addition.coefficient)
            stack.enter_context(_changed(block, addition.site, change))
        yield


@final
@dataclass(frozen=True, eq=False)
class ExpertAddition:
    """Directions of experts, added to the output of their MoE block in proportion to the experts' router probability.

    Attributes:
        layer: position among the MoE layers.
        experts: indices in the layer, each once.
        vectors_XD: one direction per expert; they are not normalised.
        coefficient: as in `Addition`.
        top_k_only: add an expert's direction only to tokens that are routed to it.
    """

    layer: int
    experts: tuple[int, ...]
    vectors_XD: Tensor
    coefficient: float | Tensor = 1.0
    top_k_only: bool = False


@contextmanager
def experts_added(moe: MoEModel, additions: Sequence[ExpertAddition]) -> Iterator[None]:
    """Inside, `y <- y + coefficient * sum over e of p_e(x) v_e` on every token at the output of MoE blocks.

    `p_e` is the family's gate probability (`models.moe.gates.gate_probabilities`), whether or not the token is routed
    to e (unless `top_k_only`). The output is that of the block, before any norm and any residual multiplier that follow
    it: where an expert's own output enters it, on the scale of `models.hidden.expert_outputs`.

    Raises:
        UnsupportedModelError: the decoder layers or their halves cannot be identified.
        ConfigError: the model lacks a layer or an expert, an expert is named twice, or the vectors have another shape.
        SeawallError (in the forward pass): per-row coefficients with another number of rows, or with generation.
    """
    blocks = decoder_blocks(moe.model)
    for addition in additions:
        _require_experts(moe, addition)
    with ExitStack() as stack:
        if any(_is_per_row(addition.coefficient) for addition in additions):
            stack.enter_context(single_passes_only(moe.model))
        for addition in additions:
            layer = moe.layers[addition.layer]
            adding = _ExpertsAdding(layer, addition)
            stack.callback(layer.router.register_forward_hook(adding.see_router).remove)
            stack.callback(layer.experts.register_forward_pre_hook(adding.see_experts, with_kwargs=True).remove)
            stack.enter_context(output_changed(blocks[layer.decoder_layer].mlp, adding.change))
        yield


@final
class _ExpertsAdding:
    """One addition at one MoE layer: holds the routing of a pass until the block's output."""

    def __init__(self, layer: MoELayer, addition: ExpertAddition) -> None:
        self._read_logits = logits_reader(layer)
        self._read_call = call_reader(layer.experts)
        self._addition = addition
        self._vectors_XD = addition.vectors_XD.detach().float()
        self._rule: GateRule | None = None
        self._fitted = False
        self._logits_TE: list[Tensor] = []
        self._shares_TX: list[Tensor] = []

    def see_router(self, router: nn.Module, inputs: Any, output: Any) -> None:
        self._logits_TE[:] = [self._read_logits(output).detach().float()]

    def see_experts(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call, logits_TE = self._read_call(args, kwargs), self._logits_TE.pop()
        indices_TK, weights_TK = call.indices_TK, call.weights_TK.detach()
        if not self._fitted and bool(logits_TE.isfinite().all()):
            self._rule, self._fitted = closest_rule(logits_TE, indices_TK, weights_TK), True
        shares_TE = gate_probabilities(logits_TE, indices_TK, weights_TK, self._rule)
        experts_X = torch.tensor(self._addition.experts, device=indices_TK.device)
        shares_TX = shares_TE[:, experts_X]
        if self._addition.top_k_only:
            shares_TX = shares_TX * (indices_TK[:, :, None] == experts_X).any(dim=1)
        self._shares_TX[:] = [shares_TX]

    def change(self, hidden_BTD: Tensor) -> Tensor:
        sums_TD = self._shares_TX.pop() @ self._vectors_XD.to(hidden_BTD.device)
        shift = per_row(self._addition.coefficient, hidden_BTD) * sums_TD.view(hidden_BTD.shape)
        return (hidden_BTD + shift).to(hidden_BTD.dtype)


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
    _require_width(model, direction_D)
    direction_D = direction_D.detach().float()
    length = direction_D.norm()
    if not (length.isfinite() and length > 0):
        raise ConfigError("the direction to ablate has no length", got=f"{length.item():g}", expected="above 0")
    change = _ablating(direction_D / length)
    with ExitStack() as stack:
        for layer, site in product(chosen, (site for site in SITES if site in sites)):
            stack.enter_context(_changed(blocks[layer], site, change))
        yield


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


def _is_per_row(coefficient: float | Tensor) -> bool:
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


def _require_experts(moe: MoEModel, addition: ExpertAddition) -> None:
    if not 0 <= addition.layer < moe.num_layers:
        raise ConfigError(f"MoE layer {addition.layer} does not exist", expected=f"0 to {moe.num_layers - 1}")
    unknown = [expert for expert in addition.experts if not 0 <= expert < moe.num_experts]
    if unknown:
        raise ConfigError(f"expert {unknown[0]} does not exist", expected=f"0 to {moe.num_experts - 1}")
    if len(set(addition.experts)) < len(addition.experts):
        raise ConfigError("an expert is named twice", got=f"experts {list(addition.experts)}", expected="each once")
    if addition.vectors_XD.ndim != 2 or len(addition.vectors_XD) != len(addition.experts):
        raise ConfigError(
            "the directions do not fit the experts",
            got=f"shape {tuple(addition.vectors_XD.shape)}",
            expected=f"{len(addition.experts)} rows, one per expert",
        )
    _require_width(moe.model, addition.vectors_XD[0])


def _require_width(model: PreTrainedModel, vector_D: Tensor) -> None:
    width = int(model.config.get_text_config().hidden_size)
    if vector_D.shape != (width,):
        raise ConfigError(
            "the direction does not fit the model",
            got=f"shape {tuple(vector_D.shape)}",
            expected=f"({width},), the model's width",
            remedy="extract directions from this model",
        )

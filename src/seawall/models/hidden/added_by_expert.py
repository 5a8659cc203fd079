"""Adds directions of experts to the output of their MoE block, in proportion to the experts' gate probability.

Legend: B rows of the batch, T tokens, D model width, E routed experts of a layer, K experts per token, X experts of an
addition.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from seawall.errors import ConfigError
from seawall.models.hidden.intervene import is_per_row, per_row, require_width, single_passes_only
from seawall.models.hidden.sublayers import decoder_blocks, output_changed
from seawall.models.moe.calls import call_reader, logits_reader
from seawall.models.moe.find import MoELayer, MoEModel
from seawall.models.moe.gates import GateRule, closest_rule, gate_probabilities


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
        if any(is_per_row(addition.coefficient) for addition in additions):
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
    require_width(moe.model, addition.vectors_XD[0])

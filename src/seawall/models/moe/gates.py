"""The formula by which a family turns router logits into gate weights, inferred from a recorded forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from seawall.errors import UnsupportedModelError
from seawall.models.moe.capture import RoutingTrace


def _softmax(logits_TE: Tensor, indices_TK: Tensor) -> Tensor:
    return torch.softmax(logits_TE, dim=-1).gather(1, indices_TK)


def _sigmoid(logits_TE: Tensor, indices_TK: Tensor) -> Tensor:
    return torch.sigmoid(logits_TE).gather(1, indices_TK)


def _softmax_of_chosen(logits_TE: Tensor, indices_TK: Tensor) -> Tensor:
    return torch.softmax(logits_TE.gather(1, indices_TK), dim=-1)


def _sigmoid_of_chosen(logits_TE: Tensor, indices_TK: Tensor) -> Tensor:
    scores_TK = _sigmoid(logits_TE, indices_TK)
    return scores_TK / scores_TK.sum(dim=-1, keepdim=True)


FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "softmax": _softmax,
    "softmax over the chosen": _softmax_of_chosen,
    "sigmoid": _sigmoid,
    "sigmoid, normalised over the chosen": _sigmoid_of_chosen,
}
"""Name -> (logits (T, E) in float32, indices (T, K)) -> weights (T, K), up to a constant factor."""


@final
@dataclass(frozen=True)
class GateRule:
    """The gate weights of one layer: `scale x formula(logits, indices)`."""

    formula: str
    scale: float

    def weights(self, logits_TE: Tensor, indices_TK: Tensor) -> Tensor:
        """Gate weights (T, K) in float32 for any choice of experts; differentiable in the logits."""
        return self.scale * FORMULAS[self.formula](logits_TE.float(), indices_TK)


def gate_rules(trace: RoutingTrace) -> tuple[GateRule, ...]:
    """The rule of each layer: the formula and factor that reproduce the recorded weights.

    Args:
        trace: a forward pass recorded with `capture(moe, logits=True)`.

    Raises:
        UnsupportedModelError: the trace has no logits, or no formula reproduces the recorded weights.
    """
    if len(trace.logits) != trace.num_layers:
        raise UnsupportedModelError(
            "the trace has no router logits",
            expected="a trace recorded with capture(moe, logits=True)",
            remedy='record logits, or replay with weights="recorded"',
        )
    layers = zip(trace.logits, trace.indices, trace.weights, strict=True)
    return tuple(_fit(layer, *tensors) for layer, tensors in enumerate(layers))


def _fit(layer: int, logits_TE: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> GateRule:
    recorded = weights_TK.detach().double()
    tolerance = 16 * torch.finfo(weights_TK.dtype).eps * recorded.abs().max()
    closest = float("inf")
    for name, formula in FORMULAS.items():
        computed = formula(logits_TE.detach().float(), indices_TK).double()
        scale = (recorded * computed).sum() / (computed * computed).sum()
        error = (recorded - scale * computed).abs().max()
        if error <= tolerance:
            return GateRule(name, scale.item())
        closest = min(closest, error.item())
    raise UnsupportedModelError(
        f"the gate weights of MoE layer {layer} cannot be recomputed from its logits",
        got=f"a difference of at least {closest:.2g} under each of: {', '.join(FORMULAS)}",
        expected=f"at most {tolerance.item():.2g} under one of them",
        remedy='replay with weights="recorded"',
    )

"""The formula by which a family turns router logits into gate weights, inferred from a recorded forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
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


def _sqrt_softplus(logits_TE: Tensor, indices_TK: Tensor) -> Tensor:
    return F.softplus(logits_TE).sqrt().gather(1, indices_TK)


def _sqrt_softplus_of_chosen(logits_TE: Tensor, indices_TK: Tensor) -> Tensor:
    scores_TK = _sqrt_softplus(logits_TE, indices_TK)
    return scores_TK / scores_TK.sum(dim=-1, keepdim=True)


FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "softmax": _softmax,
    "softmax over the chosen": _softmax_of_chosen,
    "sigmoid": _sigmoid,
    "sigmoid, normalised over the chosen": _sigmoid_of_chosen,
    "square root of softplus": _sqrt_softplus,
    "square root of softplus, normalised over the chosen": _sqrt_softplus_of_chosen,
}
"""Name -> (logits (T, E) in float32, indices (T, K)) -> weights (T, K), up to a constant factor."""
GATE_SCORES: dict[str, str] = {
    "softmax": "softmax",
    "softmax over the chosen": "softmax",
    "sigmoid": "sigmoid",
    "sigmoid, normalised over the chosen": "sigmoid",
    "square root of softplus": "sqrt_softplus",
    "square root of softplus, normalised over the chosen": "sqrt_softplus",
}
"""Formula -> score of a single expert (`ROUTER_SCORES` in `moe/routing.py`) that it rests on."""


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


def gate_formula(logits_TE: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> str | None:
    """The name of the formula that reproduces the recorded weights of a layer best; None where none does."""
    errors = {name: _error(name, logits_TE, indices_TK, weights_TK)[1] for name in FORMULAS}
    closest = min(errors, key=lambda name: errors[name])
    return closest if errors[closest] <= _tolerance(weights_TK) else None


def _fit(layer: int, logits_TE: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> GateRule:
    tolerance = _tolerance(weights_TK)
    closest = float("inf")
    for name in FORMULAS:
        scale, error = _error(name, logits_TE, indices_TK, weights_TK)
        if error <= tolerance:
            return GateRule(name, scale)
        closest = min(closest, error)
    raise UnsupportedModelError(
        f"the gate weights of MoE layer {layer} cannot be recomputed from its logits",
        got=f"a difference of at least {closest:.2g} under each of: {', '.join(FORMULAS)}",
        expected=f"at most {tolerance:.2g} under one of them",
        remedy='replay with weights="recorded"',
    )


def _tolerance(weights_TK: Tensor) -> float:
    return 16 * torch.finfo(weights_TK.dtype).eps * weights_TK.detach().double().abs().max().item()


def _error(name: str, logits_TE: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> tuple[float, float]:
    """(the best constant factor, the largest difference from the recorded weights) of a formula."""
    recorded = weights_TK.detach().double()
    computed = FORMULAS[name](logits_TE.detach().float(), indices_TK).double()
    scale = (recorded * computed).sum() / (computed * computed).sum()
    return scale.item(), (recorded - scale * computed).abs().max().item()

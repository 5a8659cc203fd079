"""The formula by which a family turns router logits into gate weights, inferred from a recorded forward pass.

Legend: T tokens, E experts of a layer, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
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


def closest_rule(logits_TE: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> GateRule | None:
    """The rule that reproduces recorded gate weights best; None where none does within rounding.

    Args:
        logits_TE: the router's logits.
        indices_TK: the experts that it chose.
        weights_TK: their gate weights.
    """
    rule, error, tolerance = _closest(logits_TE, indices_TK, weights_TK)
    return rule if error <= tolerance else None


def _fit(layer: int, logits_TE: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> GateRule:
    rule, error, tolerance = _closest(logits_TE, indices_TK, weights_TK)
    if error <= tolerance:
        return rule
    raise UnsupportedModelError(
        f"the gate weights of MoE layer {layer} cannot be recomputed from its logits",
        got=f"a difference of at least {error:.2g} under each of: {', '.join(FORMULAS)}",
        expected=f"at most {tolerance:.2g} under one of them",
        remedy='replay with weights="recorded"',
    )


def _closest(logits_TE: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> tuple[GateRule, float, float]:
    """The best rule, its largest error, and the error that rounding explains; the first of equal rules."""
    recorded = weights_TK.detach().double()
    tolerance = 16 * torch.finfo(weights_TK.dtype).eps * recorded.abs().max().item()
    best, smallest = GateRule(next(iter(FORMULAS)), 0.0), float("inf")
    for name, formula in FORMULAS.items():
        computed = formula(logits_TE.detach().float(), indices_TK).double()
        scale = (recorded * computed).sum() / (computed * computed).sum()
        error = (recorded - scale * computed).abs().max().item()
        if error < smallest:
            best, smallest = GateRule(name, scale.item()), error
    return best, smallest, tolerance


def gate_probabilities(
    logits_TE: Tensor, indices_TK: Tensor, weights_TK: Tensor, rule: GateRule | None
) -> Float[Tensor, "T E"]:
    """`p_e(x)` of every expert, as the family computes it, in float32.

    Softmax families: the softmax over all experts of the layer (arXiv 2606.04160). Sigmoid families (DeepSeek-V3,
    GLM-4, MiniMax): the gate weight where the token is routed to e, with the family's correction bias, groups,
    normalisation and scaling in it; elsewhere the score of e's logit on the scale of the token's gate weights. Where
    no formula is known (PhiMoE): the gate weight, 0 where the token is not routed to e.

    Args:
        logits_TE: the router's logits.
        indices_TK: the experts that it chose.
        weights_TK: their gate weights.
        rule: of these weights, by `closest_rule`.
    """
    routed_TK = weights_TK.detach().float()
    if rule is None:
        return torch.zeros_like(logits_TE, dtype=torch.float32).scatter(1, indices_TK, routed_TK)
    if rule.formula.startswith("softmax"):
        return torch.softmax(logits_TE.float(), dim=-1)
    logits_TE = logits_TE.float()
    is_sigmoid = GATE_SCORES[rule.formula] == "sigmoid"
    scores_TE = torch.sigmoid(logits_TE) if is_sigmoid else F.softplus(logits_TE).sqrt()
    per_score_T1 = routed_TK.sum(-1, keepdim=True) / scores_TE.gather(1, indices_TK).sum(-1, keepdim=True)
    return (scores_TE * per_score_T1).scatter(1, indices_TK, routed_TK)

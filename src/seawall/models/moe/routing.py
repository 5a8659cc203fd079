"""The probabilities by which a family routes, read from the router's structure and checked against a recorded pass.

A router ranks its experts by a score of their logits (softmax, sigmoid, ...), to which some families add a correction
bias that no gate weight contains, and of which some leave out all but the best groups of experts. The softmax of the
logits ranks experts otherwise than such a router does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from seawall.errors import UnsupportedModelError
from seawall.models.moe.capture import RoutingTrace
from seawall.models.moe.find import MoELayer, MoEModel
from seawall.models.moe.gates import GATE_SCORES, closest_rule
from seawall.models.sharding import gathered

_FLOOR = 1e-30
"""Added to the score of every expert that counts, which ranks it above those of groups that are left out."""
_BIAS_NAMES = ("bias", "biases")
_GROUPS, _GROUPS_USED = ("num_group", "n_group"), "topk_group"


def _softmax(logits_TE: Tensor) -> Tensor:
    return torch.softmax(logits_TE, dim=-1)


def _sqrt_softplus(logits_TE: Tensor) -> Tensor:
    return F.softplus(logits_TE).sqrt()


def _best_two(scores_TGX: Tensor) -> Tensor:
    return scores_TGX.topk(min(2, scores_TGX.shape[-1]), dim=-1).values.sum(-1)


def _best(scores_TGX: Tensor) -> Tensor:
    return scores_TGX.amax(-1)


ROUTER_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": _softmax,
    "sigmoid": torch.sigmoid,
    "sqrt_softplus": _sqrt_softplus,
}
"""Name -> (logits (T, E) in float32) -> non-negative scores (T, E)."""
GROUP_SCORES: dict[str, Callable[[Tensor], Tensor]] = {"best_two": _best_two, "best": _best}
"""Name -> (scores (T, groups, experts per group)) -> score of each group: DeepSeek-V3's and DeepSeek-V2's."""


@final
@dataclass(frozen=True, eq=False)
class RoutingRule:
    """How one layer's router ranks its experts.

    Attributes:
        score: name in `ROUTER_SCORES`.
        bias_E: correction bias (DeepSeek-V3, equation 16), at least 0; only differences between experts matter.
        biased_logits: whether the bias is added to the logits; otherwise to the scores.
        groups: number of groups of experts.
        groups_used: number of groups whose experts count for a token.
        group_score: name in `GROUP_SCORES`.
    """

    score: str
    bias_E: Tensor | None = None
    biased_logits: bool = False
    groups: int = 1
    groups_used: int = 1
    group_score: str = "best_two"

    def probabilities(self, logits_TE: Tensor) -> Tensor:
        """Routing probabilities (T, E) in float32, whose top-K is the router's choice; differentiable in the logits.

        The scores by which the router ranks, divided by their sum; 0 for experts of groups that are left out.
        """
        logits_TE = logits_TE.float()
        bias_E = 0.0 if self.bias_E is None else self.bias_E.to(logits_TE.device)
        scores_TE = ROUTER_SCORES[self.score](logits_TE + bias_E if self.biased_logits else logits_TE)
        if not self.biased_logits:
            scores_TE = scores_TE + bias_E
        scores_TE = scores_TE + _FLOOR
        if self.groups_used < self.groups:
            scores_TE = scores_TE * self._counting(scores_TE.detach())
        return scores_TE / scores_TE.sum(-1, keepdim=True)

    def agreement(self, logits_TE: Tensor, indices_TK: Tensor, *, tolerance: float) -> float:
        """Share of the tokens whose top-K is the recorded choice, up to ties within the relative tolerance."""
        probability_TE = self.probabilities(logits_TE)
        chosen_TE = torch.zeros_like(probability_TE, dtype=torch.bool).scatter(1, indices_TK, True)
        least_T = probability_TE.masked_fill(~chosen_TE, torch.inf).amin(-1)
        other_T = probability_TE.masked_fill(chosen_TE, -torch.inf).amax(-1)
        return float((least_T >= other_T * (1 - tolerance)).double().mean())

    def _counting(self, scores_TE: Tensor) -> Tensor:
        """1 for experts of the groups that count for a token, 0 for others (T, E)."""
        grouped_TGX = scores_TE.view(len(scores_TE), self.groups, -1)
        score_TG = GROUP_SCORES[self.group_score](grouped_TGX)
        best = score_TG.topk(self.groups_used, dim=-1).indices
        counts_TG = torch.zeros_like(score_TG).scatter(1, best, 1.0)
        return counts_TG.repeat_interleave(grouped_TGX.shape[-1], dim=-1)


def routing_rules(moe: MoEModel, trace: RoutingTrace) -> tuple[RoutingRule, ...]:
    """The rule of each layer, under which every recorded choice is the top-K.

    Args:
        moe: the model of the record.
        trace: a forward pass recorded with `capture(moe, logits=True)`.

    Raises:
        UnsupportedModelError: no rule reproduces the recorded choices of a layer, e.g. of one that routes by token ids.
    """
    layers = zip(moe.layers, trace.logits, trace.indices, trace.weights, strict=True)
    return tuple(_fit(moe, *tensors) for tensors in layers)


def _fit(moe: MoEModel, layer: MoELayer, logits_TE: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> RoutingRule:
    logits_TE = logits_TE.detach()
    tolerance = 16 * torch.finfo(weights_TK.dtype).eps
    weighted = closest_rule(logits_TE, indices_TK, weights_TK)
    # The gate weights name the score first; those of a single expert per token (K = 1) name none.
    scores = [*([GATE_SCORES[weighted.formula]] if weighted else []), *ROUTER_SCORES]
    closest = 0.0
    for rule in _candidates(moe, layer, scores):
        share = rule.agreement(logits_TE, indices_TK, tolerance=tolerance)
        if share == 1.0:
            return rule
        closest = max(closest, share)
    raise UnsupportedModelError(
        f"the choices of {type(layer.router).__name__} cannot be recomputed from its logits (MoE layer {layer.index})",
        got=f"the recorded experts for {closest:.0%} of the tokens",
        expected="a choice of the best scores, with or without a correction bias and groups of experts",
        remedy="turn the router step off (repair.router.enabled: false)",
    )


def _candidates(moe: MoEModel, layer: MoELayer, scores: Sequence[str]) -> Iterator[RoutingRule]:
    """Rules that the router's structure allows: first those that use all of its bias and groups."""
    groups = next((value for value in _numbers(layer.router, *_GROUPS) if layer.num_experts % value == 0), 1)
    used = next(_numbers(layer.router, _GROUPS_USED), groups)
    for score in scores:
        plain = RoutingRule(score)
        biased = [
            replace(plain, bias_E=bias_E, biased_logits=on_logits)
            for bias_E in _correction_biases(moe, layer)
            for on_logits in (False, True)
        ]
        for rule in (*biased, plain):
            if used < groups:
                yield from (replace(rule, groups=groups, groups_used=used, group_score=name) for name in GROUP_SCORES)
            yield rule


def _numbers(router: Any, *names: str) -> Iterator[int]:
    yield from (value for name in names if isinstance(value := vars(router).get(name), int))


def _correction_biases(moe: MoEModel, layer: MoELayer) -> Iterator[Tensor]:
    """Tensors of E numbers called `..._bias` in the router or beside it; a linear router's own is called `bias`."""
    block = moe.model.get_submodule(layer.router_name.rpartition(".")[0])
    for module in (layer.router, block):
        own = (*module.named_buffers(), *module.named_parameters())
        for name, tensor in own:
            words = name.rpartition(".")[2].split("_")
            if len(words) > 1 and words[-1] in _BIAS_NAMES and tensor.numel() == layer.num_experts:
                bias_E = gathered(tensor.detach()).float().flatten()
                yield bias_E - bias_E.min()

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from families import FAMILIES, NUM_EXPERTS, UNUSUAL, random_ids, tiny
from seawall.errors import UnsupportedModelError
from seawall.models.moe.capture import RoutingTrace, capture
from seawall.models.moe.find import MoEModel, find_moe
from seawall.models.moe.routers import router_parameters, trainable_routers
from seawall.models.moe.routing import RoutingRule, routing_rules
from seawall.train.losses import pairwise_router_loss

GROUPED: dict[str, dict[str, Any]] = {
    "deepseek_v3": {"n_group": 4, "topk_group": 2},
    "glm4_moe": {"n_group": 4, "topk_group": 2},
}


def _model(family: str, *, spread: float = 0.0, offset: float = 5.0) -> MoEModel:
    """A tiny model whose correction biases differ by about `spread`, around an offset that affects no choice."""
    moe = find_moe(tiny(family, **GROUPED.get(family, {})))
    generator = torch.Generator().manual_seed(7)
    tensors = dict((*moe.model.named_buffers(), *moe.model.named_parameters()))
    biases = [tensor for name, tensor in tensors.items() if name.endswith(("correction_bias", "expert_bias"))]
    with torch.no_grad():
        for bias in biases:
            bias.copy_(offset + spread * torch.randn(bias.shape, generator=generator))
    return moe


def _recorded(moe: MoEModel, seed: int = 0) -> RoutingTrace:
    with torch.no_grad(), capture(moe, logits=True) as trace:
        moe.model(random_ids(4, 24, seed=seed), use_cache=False)
    return trace


def _chosen(values_TE: Tensor, top_k: int) -> Tensor:
    return values_TE.topk(top_k, dim=-1).indices.sort(-1).values


@pytest.mark.parametrize("family", [*FAMILIES, *UNUSUAL])
def test_the_top_k_of_the_probabilities_is_the_router_s_choice_for_every_token(family: str) -> None:
    moe = _model(family, spread=0.3)
    rules = routing_rules(moe, _recorded(moe))
    trace = _recorded(moe, seed=1)  # other tokens than those that the rules were read from
    for rule, logits_TE, indices_TK in zip(rules, trace.logits, trace.indices, strict=True):
        probability_TE = rule.probabilities(logits_TE)
        torch.testing.assert_close(probability_TE.sum(-1), torch.ones(len(logits_TE)))
        assert torch.equal(_chosen(probability_TE, moe.top_k), indices_TK.sort(-1).values)


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe", "minimax_m2", "ernie4_5_moe"])
def test_the_softmax_of_the_logits_is_not_the_choice_of_these_families(family: str) -> None:
    moe = _model(family, spread=0.3)
    trace = _recorded(moe)
    pairs = zip(trace.logits, trace.indices, strict=True)
    agreement = [
        float((_chosen(logits.softmax(-1), moe.top_k) == indices.sort(-1).values).all(-1).double().mean())
        for logits, indices in pairs
    ]
    assert max(agreement) < 0.95


def test_without_bias_and_groups_the_probabilities_are_the_normalised_scores() -> None:
    logits_TE = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(RoutingRule("softmax").probabilities(logits_TE), logits_TE.softmax(-1))
    sigmoid_TE = logits_TE.sigmoid()
    expected = sigmoid_TE / sigmoid_TE.sum(-1, keepdim=True)
    torch.testing.assert_close(RoutingRule("sigmoid").probabilities(logits_TE), expected)
    torch.testing.assert_close(RoutingRule("sigmoid", bias_E=torch.zeros(8)).probabilities(logits_TE), expected)


def test_experts_of_groups_left_out_have_probability_zero() -> None:
    moe = _model("deepseek_v3", spread=0.3)
    trace = _recorded(moe)
    for rule, logits_TE in zip(routing_rules(moe, trace), trace.logits, strict=True):
        assert (rule.groups, rule.groups_used) == (4, 2)
        assert (rule.probabilities(logits_TE) == 0).sum(-1).tolist() == [4] * len(logits_TE)


def test_an_offset_of_all_biases_changes_nothing() -> None:
    models = [_model("glm4_moe", spread=0.3, offset=offset) for offset in (0.0, 3.0)]
    first, second = (routing_rules(moe, _recorded(moe))[0].bias_E for moe in models)
    assert first is not None
    assert second is not None
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_router_loss_on_them_reaches_every_router(family: str) -> None:
    moe = _model(family, spread=0.3)
    rules = routing_rules(moe, _recorded(moe))
    sides = []
    with trainable_routers(moe) as routers:
        for seed in (1, 2):
            with capture(moe, logits=True, detach=False) as trace:
                moe.model(random_ids(2, 8, seed=seed), use_cache=False)
                layers = zip(rules, trace.logits, strict=True)
                sides.append([rule.probabilities(logits).view(2, 8, -1) for rule, logits in layers])
        mask = torch.ones(2, 8)
        loss = pairwise_router_loss(*sides, plain_mask_BT=mask, attack_mask_BU=mask)
        torch.autograd.backward(loss)
        gradients = {name: parameter.grad for name, parameter in routers.named_parameters()}
    assert float(loss.detach()) > 0
    weights = [name for name in router_parameters(moe) if name.endswith("weight")]
    assert len(weights) == moe.num_layers
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients.values())
    assert sum(gradient is not None and float(gradient.abs().max()) > 0 for gradient in gradients.values()) >= len(
        weights
    )


def test_a_choice_that_no_rule_explains_is_refused() -> None:
    moe = _model("olmoe")
    trace = _recorded(moe)
    trace.indices[1] = (trace.indices[1] + 1) % NUM_EXPERTS
    with pytest.raises(UnsupportedModelError, match=r"MoE layer 1.*repair.router.enabled"):
        routing_rules(moe, trace)

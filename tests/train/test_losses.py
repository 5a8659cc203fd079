from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from places import SHARED
from seawall.data.templating import IGNORED
from seawall.train.losses import (
    DIVERGENCES,
    pairwise_router_loss,
    reference_router_loss,
    response_cross_entropy,
    response_divergence,
)

ORACLE = SHARED / "oracle" / "rasa.json"
each_direction = pytest.mark.parametrize("direction", sorted(DIVERGENCES))


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_cross_entropy_is_the_mean_over_each_row_s_response() -> None:
    logits_BTV = _random(2, 4, 5)
    labels_BT = torch.tensor([[IGNORED, IGNORED, 3, 1], [IGNORED, 2, IGNORED, IGNORED]])
    log_BTV = logits_BTV.log_softmax(-1)
    expected = torch.stack([-(log_BTV[0, 1, 3] + log_BTV[0, 2, 1]) / 2, -log_BTV[1, 0, 2]])
    torch.testing.assert_close(response_cross_entropy(logits_BTV, labels_BT), expected)


def test_prompt_and_padding_take_no_gradient() -> None:
    logits_BTV = _random(1, 5, 4).requires_grad_()
    labels_BT = torch.tensor([[IGNORED, IGNORED, 3, 1, IGNORED]])
    torch.autograd.backward(response_cross_entropy(logits_BTV, labels_BT).sum())
    assert logits_BTV.grad is not None
    assert logits_BTV.grad[0].abs().sum(-1).gt(0).tolist() == [False, True, True, False, False]


def test_the_opening_of_a_response_weighs_as_asked() -> None:
    logits_BTV = _random(2, 6, 4)
    labels_BT = torch.tensor([[IGNORED, IGNORED, 1, 2, 3, 0], [IGNORED, 1, 2, IGNORED, IGNORED, IGNORED]])
    found = response_cross_entropy(logits_BTV, labels_BT, opening_tokens=2, opening_weight=5.0)
    nll = -logits_BTV.log_softmax(-1)
    first = [nll[0, at - 1, labels_BT[0, at]] for at in (2, 3, 4, 5)]
    second = [nll[1, at - 1, labels_BT[1, at]] for at in (1, 2)]
    expected = [(5 * (first[0] + first[1]) + first[2] + first[3]) / 12, (second[0] + second[1]) / 2]
    torch.testing.assert_close(found, torch.stack(expected))


def test_a_row_without_response_is_zero_not_nan() -> None:
    loss_B = response_cross_entropy(_random(1, 3, 4), torch.full((1, 3), IGNORED))
    assert loss_B.tolist() == [0.0]


LABELS_BT = torch.tensor([[IGNORED, IGNORED, 1, 2, 3, 0], [IGNORED, 1, 2, IGNORED, IGNORED, IGNORED]])


def _divergence(original_BTV: Tensor, now_BTV: Tensor, likeliest: int, **opening: Any) -> Tensor:
    top = original_BTV[:, :-1].log_softmax(-1).topk(likeliest, dim=-1)
    return response_divergence(now_BTV, LABELS_BT, top.indices, top.values, **opening)


def test_the_divergence_is_the_mean_kl_over_each_row_s_response() -> None:
    original_BTV, now_BTV = _random(2, 6, 7), _random(2, 6, 7, seed=1)
    log_p, log_q = original_BTV.log_softmax(-1), now_BTV.log_softmax(-1)
    kl_BT = (log_p.exp() * (log_p - log_q)).sum(-1)
    found = _divergence(original_BTV, now_BTV, 7, opening_tokens=1, opening_weight=3.0)
    expected = [(3 * kl_BT[0, 1] + kl_BT[0, 2:5].sum()) / 6, (3 * kl_BT[1, 0] + kl_BT[1, 1]) / 4]
    torch.testing.assert_close(found, torch.stack(expected))


def test_the_divergence_of_the_likeliest_tokens_counts_the_rest_as_one_outcome() -> None:
    original_BTV, now_BTV = _random(2, 6, 7), _random(2, 6, 7, seed=1)
    two = _divergence(original_BTV, now_BTV, 2)
    expected = []
    for at in (0, 1):
        p_K, order_K = original_BTV[1, at].softmax(-1).sort(descending=True)
        q_K = now_BTV[1, at].softmax(-1)[order_K]
        p_K, q_K = (torch.cat([x_K[:2], x_K[2:].sum()[None]]) for x_K in (p_K, q_K))
        expected.append((p_K * (p_K / q_K).log()).sum())
    torch.testing.assert_close(two[1], sum(expected) / 2)
    assert torch.all(two < _divergence(original_BTV, now_BTV, 7)), "merging outcomes can only lose information"


@pytest.mark.parametrize("certain", [1.0, 100.0])
def test_what_has_not_changed_costs_nothing_and_takes_no_gradient(certain: float) -> None:
    original_BTV = certain * _random(2, 6, 7)
    now_BTV = original_BTV.clone().requires_grad_()
    loss_B = _divergence(original_BTV, now_BTV, 3)
    torch.autograd.backward(loss_B.sum())
    assert now_BTV.grad is not None
    torch.testing.assert_close(loss_B, torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(now_BTV.grad, torch.zeros_like(original_BTV), atol=1e-6, rtol=0)


def _pairwise(plain: list[Tensor], attack: list[Tensor], direction: str = "forward") -> Tensor:
    masks = [torch.ones(side[0].shape[:2], dtype=torch.long) for side in (plain, attack)]
    sides = [[logits.softmax(-1) for logits in side] for side in (plain, attack)]
    return pairwise_router_loss(*sides, plain_mask_BT=masks[0], attack_mask_BU=masks[1], direction=direction)


@each_direction
def test_equal_routing_costs_nothing_and_different_routing_something(direction: str) -> None:
    plain, attack = [_random(2, 3, 4)], [_random(2, 5, 4, seed=1)]
    assert float(_pairwise(plain, plain, direction)) == pytest.approx(0.0, abs=1e-6)
    assert float(_pairwise(plain, attack, direction)) > 1e-3


def test_each_attack_is_compared_with_its_own_request() -> None:
    plain, attack = _random(2, 3, 4), _random(2, 5, 4, seed=1)
    pairs = [_pairwise([plain[at : at + 1]], [attack[at : at + 1]]) for at in range(2)]
    torch.testing.assert_close(_pairwise([plain], [attack]), torch.stack(pairs).mean())
    crossed = _pairwise([plain], [attack.flip(0)])
    assert not torch.isclose(crossed, _pairwise([plain], [attack]))


def test_the_mean_of_probabilities_is_compared_and_not_of_logits() -> None:
    # Two tokens at opposite experts use both experts alike; a mean of logits would hide which way they went.
    both_ways = torch.tensor([[[9.0, -9.0], [-9.0, 9.0]]])
    undecided = torch.zeros(1, 2, 2)
    assert float(_pairwise([both_ways], [undecided])) == pytest.approx(0.0, abs=1e-6)


@each_direction
def test_padding_does_not_count(direction: str) -> None:
    plain, attack = _random(2, 3, 4), _random(2, 5, 4, seed=1)
    padded = [torch.cat([side, _random(2, 3, 4, seed=2) * 50], dim=1) for side in (plain, attack)]
    masks = [(torch.arange(side.shape[1]) < side.shape[1] - 3).long().expand(2, -1) for side in padded]
    loss = pairwise_router_loss(
        [padded[0].softmax(-1)],
        [padded[1].softmax(-1)],
        plain_mask_BT=masks[0],
        attack_mask_BU=masks[1],
        direction=direction,
    )
    torch.testing.assert_close(loss, _pairwise([plain], [attack], direction))


@each_direction
def test_only_the_attack_s_side_is_pulled(direction: str) -> None:
    for loss in (_pairwise, lambda a, b, d: reference_router_loss(a, b, direction=d)):
        plain, attack = _random(2, 3, 4).requires_grad_(), _random(2, 5, 4, seed=1).requires_grad_()
        torch.autograd.backward(loss([plain], [attack], direction))
        assert plain.grad is None
        assert attack.grad is not None
        assert attack.grad.abs().max() > 0


def test_layers_count_alike() -> None:
    layers = [[_random(2, 3, 4, seed=seed)] for seed in range(4)]
    apart = [_pairwise(layers[0], layers[1]), _pairwise(layers[2], layers[3])]
    together = _pairwise(layers[0] + layers[2], layers[1] + layers[3])
    torch.testing.assert_close(together, torch.stack(apart).mean())


@each_direction
def test_the_reference_s_numbers_are_reproduced(direction: str) -> None:
    if not ORACLE.is_file():
        pytest.skip("the reference's numbers (shared/oracle/rasa.json) are not here")
    document: dict[str, Any] = json.loads(ORACLE.read_text(encoding="utf-8"))
    for case in document["router_consistency"]:
        shape = (case["batch"], case["tokens"], document["num_experts"])
        plain, attack = (
            [torch.tensor(layer).view(shape) for layer in case[f"{side}_logits"]] for side in ("anchor", "attack")
        )
        loss = reference_router_loss(plain, attack, direction=direction)
        assert float(loss) == pytest.approx(case["loss"][direction], abs=1e-6)
        # 1e-6 is 3e-4 of these small losses; the formula itself agrees far better.
        assert float(loss) == pytest.approx(case["loss"][direction], rel=1e-5)

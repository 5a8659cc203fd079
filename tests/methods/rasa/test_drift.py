from __future__ import annotations

import pytest
import torch
from small_repair import TOKENIZER, small_model

from families import TOP_K
from seawall.data.types import user
from seawall.methods.rasa.repair.drift import expert_usage, gate_shares, routing_drift
from seawall.models.moe.capture import RoutingTrace
from seawall.models.moe.routers import router_parameters

PROMPTS = [user("a"), user("a longer prompt"), user("middle")]


def test_shares_are_the_gate_weights_of_the_chosen_experts() -> None:
    trace = RoutingTrace(
        1, 4, indices=[torch.tensor([[2, 0], [3, 1]])], weights=[torch.tensor([[3.0, 1.0], [1.0, 1.0]])]
    )
    assert gate_shares(trace).tolist() == [[[0.25, 0.0, 0.75, 0.0]], [[0.0, 0.5, 0.0, 0.5]]]


def test_drift_is_zero_for_the_same_routing_and_one_for_other_experts() -> None:
    first = torch.tensor([[[1.0, 0.0, 0.0]], [[0.5, 0.5, 0.0]]])
    moved = torch.tensor([[[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]])
    half = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]]])
    assert routing_drift(first, first).tolist() == [0.0]
    assert routing_drift(first, moved).tolist() == [1.0]
    assert routing_drift(first, half).tolist() == [0.5]


def test_two_tokens_that_swap_experts_are_drift_though_the_totals_are_the_same() -> None:
    first = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert routing_drift(first, first.flip(0)).tolist() == [1.0]


@pytest.mark.parametrize("family", ["glm4_moe", "mixtral", "gpt_oss"])
def test_usage_counts_every_prompt_token_and_no_padding(family: str) -> None:
    moe = small_model(family)
    together, alone = (expert_usage(moe, TOKENIZER, PROMPTS, batch_size=size) for size in (3, 1))
    torch.testing.assert_close(together, alone)
    assert together.shape[1:] == (moe.num_layers, moe.num_experts)
    torch.testing.assert_close(together.sum(-1), torch.ones(together.shape[:2]))
    assert (together > 0).sum(-1).max() <= TOP_K


def test_drift_starts_at_the_layer_whose_router_changed() -> None:
    moe = small_model()
    before = expert_usage(moe, TOKENIZER, PROMPTS, batch_size=3)
    with torch.no_grad():
        list(router_parameters(moe).values())[1].neg_()
    drift = routing_drift(before, expert_usage(moe, TOKENIZER, PROMPTS, batch_size=3)).tolist()
    assert drift[0] == 0.0
    assert drift[1] > 0.5

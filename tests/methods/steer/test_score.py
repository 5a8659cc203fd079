"""Which tokens open refusals, and the log-odds that one of them comes next."""

from __future__ import annotations

import math

import pytest
import torch

from seawall.errors import ConfigError, DataError
from seawall.methods.steer.score import divergence, refusal_score, refusal_tokens


def test_refusal_tokens_are_those_that_open_refusals_often_enough() -> None:
    first = [7, 7, 7, 40, 40, 9, 9, 9, 9]
    refused = [True, True, True, True, True, True, False, False, False]
    assert refusal_tokens(first, refused, share=0.3) == (7, 40)
    assert refusal_tokens(first, refused, share=0.1) == (7, 40, 9)
    assert refusal_tokens([3, 4, 5], [True] * 3, share=0.9) == (3,)
    assert refusal_tokens([3, 4], [False] * 2, override=[8, 6, 8]) == (8, 6)


def test_a_model_without_refusals_is_refused() -> None:
    with pytest.raises(DataError, match=r"refuses no plain harmful prompt.*got 0 refusals of 2 replies"):
        refusal_tokens([3, 4], [False, False])
    with pytest.raises(ConfigError, match="the refusal tokens are empty"):
        refusal_tokens([3], [True], override=[])


def test_the_score_is_the_log_odds_at_the_temperature() -> None:
    logits_BV = torch.randn(4, 11, generator=torch.Generator().manual_seed(0))
    mass_B = (logits_BV / 0.7).softmax(-1)[:, [2, 5]].sum(-1).double()
    expected_B = mass_B.log() - (1 - mass_B).log()
    assert torch.allclose(refusal_score(logits_BV, [5, 2, 5]), expected_B, atol=1e-5)


@pytest.mark.parametrize("gap", [200.0, -200.0])
def test_the_score_is_exact_where_the_probability_rounds_to_one_or_zero(gap: float) -> None:
    logits_BV = torch.tensor([[gap, 0.0, 0.0]])
    assert refusal_score(logits_BV, [0]).item() == pytest.approx(gap / 0.7 - math.log(2), abs=1e-3)
    assert refusal_score(logits_BV.bfloat16(), [0]).dtype == torch.float64


def test_tokens_that_cannot_be_scored_are_refused() -> None:
    logits_BV = torch.zeros(1, 3)
    for tokens, got in (([3], "token 3"), ([-1], "token -1"), ([], "0 tokens"), ([0, 1, 2], "3 tokens")):
        with pytest.raises(ConfigError, match=f"cannot be scored; got {got}"):
            refusal_score(logits_BV, tokens)


def test_the_divergence_is_from_the_original_to_the_changed() -> None:
    generator = torch.Generator().manual_seed(1)
    original_BV, changed_BV = (torch.randn(3, 7, generator=generator) for _ in range(2))
    p_BV, q_BV = original_BV.softmax(-1), changed_BV.softmax(-1)
    assert torch.allclose(divergence(original_BV, changed_BV), (p_BV * (p_BV / q_BV).log()).sum(-1).double(), atol=1e-5)
    assert divergence(original_BV, original_BV).tolist() == [0.0] * 3


def test_impossible_tokens_count_nothing_and_broken_logits_show() -> None:
    original_BV = torch.tensor([[0.0, 1.0, -math.inf]])
    assert divergence(original_BV, torch.tensor([[0.0, 1.0, -math.inf]])).item() == 0
    assert divergence(original_BV, torch.tensor([[math.nan, 1.0, 0.0]])).isnan().all()

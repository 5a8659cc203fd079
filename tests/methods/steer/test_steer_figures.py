"""Shares of an effect and rank correlations, against numbers made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seawall.artifacts.audit import AuditChange, AuditFigure
from seawall.artifacts.directions import Directions
from seawall.artifacts.evaluation import Rate, Sample
from seawall.artifacts.steering import SteeringCandidate, SteeringCondition, SteeringMode, SteeringResult
from seawall.config import EvalConfig
from seawall.data.types import user
from seawall.methods.steer.claim import claim
from seawall.methods.steer.figures import expert_effects, rank_correlation, recovered, routing_correlation
from seawall.methods.steer.reasons import HARMLESS_KL, NOT_BEST

CONFIG = EvalConfig(bootstrap=200)


def side(refused: int, count: int = 40) -> list[Sample]:
    return [
        Sample(f"p{at}", f"g{at}", "plain", user("x"), "y", "refused" if at < refused else "complied", "")
        for at in range(count)
    ]


def test_half_of_the_effect_is_a_half() -> None:
    found = recovered(side(36), side(4), side(20), "plain", CONFIG)
    assert found is not None
    assert found.value == pytest.approx(0.5)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.5 < found.high
    whole = recovered(side(36), side(4), side(4), "plain", CONFIG)
    assert whole is not None
    assert whole.value == pytest.approx(1.0)
    assert recovered(side(36), side(36), side(20), "plain", CONFIG) is None


def test_ranks_and_not_values_are_correlated() -> None:
    x = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    rising = rank_correlation(x, [float(np.exp(20 * one)) for one in x], resamples=50, seed=0)
    assert rising is not None
    assert rising.value == pytest.approx(1.0)
    falling = rank_correlation(x, [-one for one in x], resamples=50, seed=0)
    assert falling is not None
    assert falling.value == pytest.approx(-1.0)
    # Ties share their mean rank: ranks 0.5 0.5 2 3 against 0 1 2 3.
    tied = rank_correlation([1.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0], resamples=50, seed=0)
    assert tied is not None
    assert tied.value == pytest.approx(np.corrcoef([0.5, 0.5, 2, 3], [0, 1, 2, 3])[0, 1])


def test_what_does_not_vary_has_no_correlation() -> None:
    assert rank_correlation([1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0], resamples=50, seed=0) is None
    assert rank_correlation([1.0, 2.0], [1.0, 2.0], resamples=50, seed=0) is None


def test_the_interval_of_noise_holds_zero() -> None:
    rng = np.random.default_rng(0)
    found = rank_correlation(rng.normal(size=80).tolist(), rng.normal(size=80).tolist(), resamples=300, seed=0)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0 < found.high


def directions(experts: int) -> Directions:
    """One MoE layer; the routing of expert e differs by e points."""
    return Directions(
        "sha256:0",
        positions=(-2, -1),
        refusal_tokens=(1,),
        candidates=tuple((0, expert) for expert in range(experts)),
        moe_layers=(0,),
        prompts=(),
        layer_NPD=torch.zeros(1, 2, 4),
        expert_CPD=torch.zeros(experts, 2, 4),
        routing_difference_LE=torch.arange(experts, dtype=torch.float64)[None] / 100,
    )


def tried(expert: int, position: int, score: float) -> SteeringCandidate:
    return SteeringCandidate("expert", 0, ((0, expert),), position, 1.0, 32, score, 0.1, kept=True)


@pytest.mark.parametrize("mode", ["suppress", "induce"])
def test_an_expert_that_moves_refusal_the_wrong_way_steers_least(mode: SteeringMode) -> None:
    # The less the routing differs, the further the score goes the wrong intervention.
    sign = -1 if mode == "suppress" else 1
    rows = [tried(expert, position, sign * (expert - 5.0)) for expert in range(6) for position in (-2, -1)]
    figures = {name: AuditFigure(0.0) for name in ("original_score", "original_attack_score")}
    found = SteeringResult("sha256:0", mode, tuple(rows), {}, figures=figures)
    rank = routing_correlation(found, directions(6), max_kl=2.0, config=CONFIG)
    assert rank is not None
    assert rank.value == pytest.approx(1.0)


def test_experts_that_were_tried_at_one_position_alone_are_not_compared() -> None:
    rows = [tried(expert, position, -1.0) for expert in range(3) for position in (-2, -1)]
    figures = {"original_score": AuditFigure(0.0)}
    found = SteeringResult("sha256:0", "suppress", (*rows, tried(3, -1, -9.0)), {}, figures=figures)
    assert set(expert_effects(found, directions(6), max_kl=2.0)) == {(0, 0), (0, 1), (0, 2)}


def test_the_claim_says_which_checks_directions_failed() -> None:
    reasons = ("", HARMLESS_KL, HARMLESS_KL, NOT_BEST, NOT_BEST)
    rows = [
        SteeringCandidate("layer", at, (), -1, 1.0, 8, -1.0, 0.1, kept=not reason, reason=reason)
        for at, reason in enumerate(reasons)
    ]
    rates = {"plain": Rate(0.5, 0.4, 0.6, 40, 0)}
    found = SteeringResult(
        "sha256:0",
        "suppress",
        tuple(rows),
        {"layer": 0},
        (SteeringCondition("original", "reference", rates), SteeringCondition("layer", "layer", rates, 0.1)),
        (AuditChange("layer", "original", "plain", -0.2, -0.3, -0.1, 0.01),),
    )
    said = claim(found, directions(0))
    assert "of 5 directions 2 failed a check (harmless KL above the cap: 2), and this is the best of the others" in said

"""Planted routing: what the contrasts find is what was put there."""

from __future__ import annotations

import torch
from torch import Tensor

from known import known
from seawall.artifacts.audit import AuditFigure
from seawall.artifacts.evaluation import Rate
from seawall.methods.audit.localisation import ATTACK, NOISE, TWIN, Usage, agreement, claim, contrast, distance, noise

GOALS = tuple(f"goal {at // 2}" for at in range(80))
LAYERS, EXPERTS, TOKENS = 3, 8, 400


def usage(seed: int, *, favoured: int | None = None, share: float = 0.0) -> Usage:
    """Counts of 400 tokens a prompt, evenly over experts, `share` of them moved to one expert of layer 1."""
    generator = torch.Generator().manual_seed(seed)
    even = torch.full((LAYERS, EXPERTS), 1 / EXPERTS)
    if favoured is not None:
        even[1] *= 1 - share
        even[1, favoured] += share
    drawn_PLT = torch.multinomial(even.repeat(len(GOALS), 1), TOKENS, replacement=True, generator=generator)
    counts = torch.nn.functional.one_hot(drawn_PLT, EXPERTS).sum(1).float()
    return Usage(counts.reshape(len(GOALS), LAYERS, EXPERTS), GOALS)


def test_a_planted_difference_is_found_with_its_size() -> None:
    found = contrast(usage(1, favoured=2, share=0.6), usage(2), resamples=300, seed=0)
    expected = 0.6 * (1 - 1 / EXPERTS) / LAYERS
    assert abs(known(found) - expected) < 0.01
    assert found.low <= known(found) <= found.high < found.low + 0.03
    assert found.low > noise(usage(2), resamples=300, seed=0).high


def test_without_a_difference_the_distance_is_that_of_halves() -> None:
    found, floor = contrast(usage(1), usage(2), resamples=300, seed=0), noise(usage(2), resamples=300, seed=0)
    assert found.low <= floor.high
    assert 0 < known(floor) < 0.02


def test_distances_are_shares_of_choices() -> None:
    def one(*values: float) -> Tensor:
        return torch.tensor([[values]], dtype=torch.float64)

    assert distance(one(1, 0), one(0, 1)).tolist() == [1.0]
    assert distance(one(0.5, 0.5), one(0.5, 0.5)).tolist() == [0.0]
    assert distance(one(0.75, 0.25), one(0.5, 0.5)).tolist() == [0.25]


def test_contrasts_agree_where_the_same_expert_tells_both_apart() -> None:
    attack = (usage(1, favoured=2, share=0.5), usage(2))
    same, other = (usage(3, favoured=2, share=0.3), usage(4)), (usage(5, favoured=6, share=0.3), usage(6))
    alike = agreement(attack, same, resamples=200, seed=0)
    apart = agreement(attack, other, resamples=200, seed=0)
    assert alike.value > 0.8
    assert alike.low is not None
    assert alike.low > 0.5
    assert apart.value < 0.2
    assert agreement(attack, same, resamples=200, seed=0) == alike


def _rate(middle: float, half: float = 0.02) -> Rate:
    return Rate(middle, middle - half, middle + half, 40, 0)


def test_the_claim_follows_the_numbers() -> None:
    stable = {"jaccard:generated": AuditFigure(0.8), "stable:generated": AuditFigure(0.5)}
    alike = stable | {"agreement:generated": AuditFigure(0.6, 0.4, 0.7)}
    unlike = stable | {"agreement:generated": AuditFigure(0.1, -0.1, 0.3)}
    floor = {NOISE: _rate(0.05)}
    assert "no more than chance" in claim({ATTACK: _rate(0.06), **floor}, stable)
    assert "without unsafe twins these numbers do not say whether" in claim({ATTACK: _rate(0.4), **floor}, stable)
    both = {ATTACK: _rate(0.4), TWIN: _rate(0.2), **floor}
    assert "correlate with refusal for any wording; these numbers do not say that they cause it" in claim(both, alike)
    assert "these numbers do not say whether with harm or" in claim(both, unlike)
    assert "these numbers do not say whether with harm or" in claim({**both, TWIN: _rate(0.05)}, alike)

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from profiles import profile_of, random_profile
from torch import Tensor

from places import SHARED
from seawall.artifacts.profile import ExpertProfile
from seawall.errors import ConfigError
from seawall.methods.rasa.selection.scores import SCORES, TokenKind, by_layer, count, top_positive

ORACLE = SHARED / "oracle" / "rasa.json"


def _gap(profile: ExpertProfile, method: str = "frequency", tokens: TokenKind = "generated") -> Tensor:
    return SCORES[method](profile, tokens)(range(len(profile.pairs)))


def test_frequency_is_pooled_over_tokens_so_that_long_replies_count_more() -> None:
    attack = torch.tensor([[[1.0, 0.0]], [[3.0, 6.0]]])
    anchor = torch.tensor([[[2.0, 2.0]], [[1.0, 1.0]]])
    expected = torch.tensor([[4 / 10 - 3 / 6, 6 / 10 - 3 / 6]], dtype=torch.float64)
    torch.testing.assert_close(_gap(profile_of(attack, anchor)), expected)


def test_mass_compares_shares_of_the_gate_weight_whatever_the_gate_s_scale() -> None:
    counts = torch.ones(1, 1, 2)
    mass = (torch.tensor([[[6.0, 2.0]]]), torch.tensor([[[0.1, 0.1]]]))
    expected = torch.tensor([[0.25, -0.25]], dtype=torch.float64)
    torch.testing.assert_close(_gap(profile_of(counts, counts, mass=mass), "mass"), expected, atol=1e-7, rtol=0)


def test_a_pair_counts_as_often_as_its_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    attack, anchor = torch.rand(2, 3, 2, 4, generator=generator)
    for method, score in SCORES.items():
        repeated = _gap(profile_of(attack[[0, 0, 2]], anchor[[0, 0, 2]]), method)
        torch.testing.assert_close(score(profile_of(attack, anchor), "generated")([0, 2, 0]), repeated)


def test_prompt_and_generated_tokens_are_scored_apart_and_together() -> None:
    uses_0, uses_1 = torch.tensor([[[4.0, 0.0]]]), torch.tensor([[[0.0, 4.0]]])
    profile = profile_of(uses_0, uses_1, prompt=(uses_1, uses_0))
    assert _gap(profile, tokens="generated").tolist() == [[1.0, -1.0]]
    assert _gap(profile, tokens="prompt").tolist() == [[-1.0, 1.0]]
    assert _gap(profile, tokens="both").tolist() == [[0.0, 0.0]]


def test_ties_go_to_the_first_layer_and_expert_even_if_their_sums_differ_in_the_last_bit() -> None:
    third = 0.1 + 0.2
    assert third != 0.3
    assert top_positive(torch.tensor([[0.3, 0.0], [third, 0.9]], dtype=torch.float64), 2) == [(1, 1), (0, 0)]


def test_only_positive_gaps_are_taken() -> None:
    gap_LE = torch.tensor([[0.5, 0.0], [-0.5, 1e-15]], dtype=torch.float64)
    assert top_positive(gap_LE, 4) == [(0, 0)]


def test_a_count_is_a_count_and_a_fraction_is_of_all_experts() -> None:
    assert count(1, 120) == 1
    assert count(1.0, 120) == 120
    assert count(0.125, 1024) == 128
    assert count(0.001, 120) == 1


def test_more_experts_than_the_model_has_are_refused() -> None:
    with pytest.raises(ConfigError, match="got 121; expected at most the model's 120"):
        count(121, 120)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 11), min_size=1, max_size=24), st.sampled_from(sorted(SCORES)), st.integers(0, 99))
def test_a_score_over_some_pairs_is_the_weighted_score_over_all(rows: list[int], method: str, seed: int) -> None:
    profile = random_profile(pairs=12, seed=seed)
    weight_P = torch.bincount(torch.tensor(rows), minlength=12).double()
    what = "counts" if method == "frequency" else "mass"
    totals = [
        (weight_P[:, None, None] * getattr(profile, f"{side}_{what}_PLE").double()).sum(0)
        for side in ("attack", "anchor")
    ]
    tokens = [(weight_P * getattr(profile, f"{side}_tokens_P").double()).sum() for side in ("attack", "anchor")]
    units = tokens if method == "frequency" else [total_LE.sum(-1, keepdim=True) for total_LE in totals]
    attack_LE, plain_LE = (total_LE / unit for total_LE, unit in zip(totals, units, strict=True))
    torch.testing.assert_close(SCORES[method](profile, "generated")(rows), attack_LE - plain_LE, atol=1e-12, rtol=0)


def test_places_are_listed_by_layer() -> None:
    assert by_layer([(2, 5), (0, 1), (2, 3)], 3) == ((1,), (), (3, 5))


def _oracle() -> dict[str, Any]:
    if not ORACLE.is_file():
        pytest.skip("the reference's numbers (shared/oracle/rasa.json) are not here")
    document: dict[str, Any] = json.loads(ORACLE.read_text(encoding="utf-8"))
    return document


def _counts(prompts: list[list[list[list[float]]]], top_k: int) -> tuple[Tensor, list[float]]:
    """Router logits by prompt and layer (T, E), of ragged T -> (counts (P, L, E), tokens (P,))."""
    counts = [
        [torch.zeros(len(layer), len(layer[0])).scatter(1, torch.tensor(layer).topk(top_k).indices, 1.0).sum(0)
         for layer in prompt]
        for prompt in prompts
    ]  # fmt: skip
    return torch.stack([torch.stack(prompt) for prompt in counts]), [float(len(prompt[0])) for prompt in prompts]


def test_the_reference_s_risk_differences_and_choices_are_reproduced() -> None:
    oracle = _oracle()
    gaps = []
    for batch in oracle["batches"]:
        sides = [_counts(batch[f"{side}_router_logits"], oracle["top_k"]) for side in ("attack", "anchor")]
        (attack, attack_tokens), (anchor, anchor_tokens) = sides
        profile = profile_of(attack, anchor, tokens=(attack_tokens, anchor_tokens), top_k=oracle["top_k"])
        gaps.append(_gap(profile))
        expected = torch.tensor(batch["risk_diff"], dtype=torch.float64)
        torch.testing.assert_close(gaps[-1], expected, atol=1e-6, rtol=0)
        # The same set: among equal gaps the reference takes the same ones, though it lists them in another order.
        assert set(top_positive(gaps[-1], 8)) == {(layer, expert) for layer, expert in batch["top8"]}
    mean = torch.tensor(oracle["mean_risk_diff"], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(gaps).mean(0), mean, atol=1e-6, rtol=0)

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from profiles import planted_profile, profile_of, random_profile

from seawall.artifacts.expert_set import ExpertSet
from seawall.config.select import SelectConfig
from seawall.errors import NothingToRepairError
from seawall.methods.rasa.selection import select
from seawall.methods.rasa.selection.controls import CONTROLS, frequency_matched
from seawall.methods.rasa.selection.scores import LayerExpert, top_positive, traffic


def _config(**settings: Any) -> SelectConfig:
    return SelectConfig(**{"bootstrap": 20, **settings})


def _places(chosen: ExpertSet) -> set[LayerExpert]:
    return {(layer, expert) for layer, experts in enumerate(chosen.layers) for expert in experts}


@pytest.mark.parametrize("method", ["frequency", "mass"])
@pytest.mark.parametrize("scope", ["global", "batch_union"])
def test_the_planted_expert_is_found(method: str, scope: str) -> None:
    chosen = select(planted_profile(signal=0.2), _config(method=method, scope=scope, k=1))
    assert chosen.layers == ((), (5,), ())
    assert chosen.stability == 1.0
    assert chosen.inclusion_LE is not None
    assert chosen.inclusion_LE[1, 5] == 1.0


@pytest.mark.parametrize("method", ["random", "frequency_matched"])
def test_a_control_never_takes_the_planted_expert(method: str) -> None:
    for seed in range(20):
        chosen = select(planted_profile(), _config(method=method, k=1, seed=seed))
        assert chosen.count == 1
        assert _places(chosen).isdisjoint({(1, 5)})
        assert chosen.stability is None


def test_equal_routing_is_nothing_to_repair() -> None:
    same = torch.ones(3, 2, 4)
    with pytest.raises(NothingToRepairError, match="3 pairs with equal routing"):
        select(profile_of(same, same), _config())


def test_fewer_experts_are_taken_where_fewer_are_positive() -> None:
    chosen = select(planted_profile(), _config(k=10))
    assert (chosen.count, chosen.k) == (1, 10)


def test_the_union_over_batches_holds_every_batch_s_choice() -> None:
    profile = random_profile(pairs=12)
    union = select(profile, _config(scope="batch_union", k=3, batch_pairs=4))
    sides = profile.attack_counts_PLE, profile.anchor_counts_PLE
    batches = [
        select(profile_of(*(side[at : at + 4] for side in sides), top_k=2), _config(k=3)) for at in range(0, 12, 4)
    ]
    assert _places(union) == set().union(*(_places(batch) for batch in batches))
    assert union.count > 3


def test_one_batch_of_all_pairs_is_the_global_choice() -> None:
    profile = random_profile()
    one_batch = select(profile, _config(scope="batch_union", k=5, batch_pairs=12))
    assert one_batch.layers == select(profile, _config(k=5)).layers


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 8), st.integers(0, 99))
def test_the_union_over_batches_is_that_of_dense_weights(pairs: int, size: int, k: int, seed: int) -> None:
    profile = random_profile(pairs=pairs, seed=seed)
    weight_RP = torch.stack(
        [
            torch.bincount(torch.arange(start, min(start + size, pairs)), minlength=pairs)
            for start in range(0, pairs, size)
        ]
    ).double()
    attack_RLE, plain_RLE = (
        torch.einsum("rp,ple->rle", weight_RP, getattr(profile, f"{side}_counts_PLE").double())
        / (weight_RP @ getattr(profile, f"{side}_tokens_P").double()).clamp_min(1.0)[:, None, None]
        for side in ("attack", "anchor")
    )
    expected = {place for gap_LE in attack_RLE - plain_RLE for place in top_positive(gap_LE, k)}
    assume(expected)
    assert _places(select(profile, _config(scope="batch_union", k=k, batch_pairs=size, bootstrap=0))) == expected


@pytest.mark.parametrize("method", ["frequency", "mass", "random", "frequency_matched"])
def test_the_same_seed_gives_the_same_set(method: str) -> None:
    first, again = (select(random_profile(), _config(method=method, seed=3)) for _ in range(2))
    assert first.layers == again.layers
    assert first.stability == again.stability


@pytest.mark.parametrize("method", ["random", "frequency_matched"])
def test_another_seed_gives_another_control(method: str) -> None:
    sets = {select(random_profile(), _config(method=method, k=6, seed=seed)).layers for seed in range(5)}
    assert len(sets) > 1


@settings(deadline=None)
@given(
    selected=st.sets(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=12),
    seed=st.integers(0, 1000),
    control=st.sampled_from(sorted(CONTROLS)),
)
def test_a_control_has_the_selection_s_size_and_overlaps_only_where_it_must(
    selected: set[LayerExpert], seed: int, control: str
) -> None:
    traffic_LE = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed))
    drawn = CONTROLS[control](selected, traffic_LE, seed)
    assert len(set(drawn)) == len(drawn) == len(selected)
    assert len(set(drawn) & selected) == max(0, 2 * len(selected) - 12)


def test_a_matched_expert_has_the_nearest_traffic_of_its_layer() -> None:
    traffic_LE = torch.tensor([[0.9, 0.85, 0.8, 0.75, 0.1, 0.1], [0.9, 0.9, 0.9, 0.9, 0.9, 0.9]])
    for seed in range(10):
        assert frequency_matched([(0, 0)], traffic_LE, seed)[0] in {(0, 1), (0, 2), (0, 3)}


def test_matched_experts_are_used_about_as_often_as_the_selected_ones() -> None:
    profile = random_profile(layers=4, experts=32)
    traffic_LE = traffic(profile, "generated")
    selected = select(profile, _config(k=12, bootstrap=0))
    used = [
        float(sum(traffic_LE[place] for place in _places(chosen)))
        for chosen in (selected, select(profile, _config(method="frequency_matched", k=12)))
    ]
    assert used[1] == pytest.approx(used[0], rel=0.1)


def test_noise_is_less_stable_than_a_signal() -> None:
    noise = select(random_profile(), _config(k=3))
    assert noise.stability is not None
    assert noise.stability < 0.9
    assert noise.inclusion_LE is not None
    assert noise.inclusion_LE.sum().item() == pytest.approx(3.0)


def test_pairs_of_one_goal_are_resampled_together() -> None:
    attack, anchor = random_profile(pairs=6).attack_counts_PLE, random_profile(pairs=6).anchor_counts_PLE
    one_goal = profile_of(attack, anchor, goals=["only goal"] * 6, top_k=2)
    assert select(one_goal, _config(k=3)).stability == 1.0


@settings(deadline=None)
@given(
    ranked=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=12, unique=True),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
    control=st.sampled_from(sorted(CONTROLS)),
)
def test_a_control_takes_what_is_apart_only_where_nothing_else_is_left(
    ranked: list[LayerExpert], share: float, seed: int, control: str
) -> None:
    selected = ranked[: 1 + int(share * (len(ranked) - 1))]
    drawn = CONTROLS[control](selected, torch.arange(12.0).view(3, 4), seed, apart=ranked)
    others = 12 - len(ranked)
    assert len(set(drawn)) == len(drawn) == len(selected)
    assert len(set(drawn) - set(ranked)) == min(others, len(selected))
    assert len(set(drawn) & set(selected)) == max(0, len(selected) - (12 - len(selected)))

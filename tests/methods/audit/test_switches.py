"""What is switched, what stands in for it, and what is said of it."""

from __future__ import annotations

from seawall.artifacts.audit import AuditChange
from seawall.artifacts.evaluation import Rate
from seawall.methods.audit.switches import (
    RANDOM,
    REPAIRED,
    Layers,
    SwitchSetting,
    best_setting,
    claim,
    limit_per_layer,
    switch_settings,
)
from seawall.methods.rasa.selection.scores import LayerExpert

OFF: list[LayerExpert] = [(0, 1), (2, 5), (0, 2), (1, 7)]
ON: list[LayerExpert] = [(1, 0), (1, 3), (2, 4)]


def _settings(*amounts: int, seed: int = 0) -> list[SwitchSetting]:
    return switch_settings(OFF, ON, amounts, num_layers=3, num_experts=8, seed=seed)


def _flat(layers: Layers) -> set[LayerExpert]:
    return {(layer, expert) for layer, experts in enumerate(layers) for expert in experts}


def test_the_first_of_both_rankings_are_switched() -> None:
    one, _, two, _ = _settings(1, 3)
    assert (one.name, one.off, one.on) == ("steered-1", ((1,), (), ()), ((), (0,), ()))
    assert (two.off, two.on) == (((1, 2), (), (5,)), ((), (0, 3), (4,)))
    assert two.counts == (3, 3)


def test_amounts_beyond_the_rankings_are_not_tried_twice() -> None:
    found = _settings(1, 4, 9, 100)
    assert [one.name for one in found] == ["steered-1", "random-1", "steered-4", "random-4"]
    assert found[2].counts == (4, 3)


def test_random_experts_are_others_as_many_in_every_layer() -> None:
    for seed in range(20):
        for one, control in zip(_settings(1, 2, 4, seed=seed)[::2], _settings(1, 2, 4, seed=seed)[1::2], strict=True):
            assert [*map(len, control.off)] == [*map(len, one.off)]
            assert [*map(len, control.on)] == [*map(len, one.on)]
            assert not (_flat(control.off) | _flat(control.on)) & {*OFF, *ON}
            assert not _flat(control.off) & _flat(control.on)
    assert _settings(4) == _settings(4)
    assert len({_settings(4, seed=seed)[1] for seed in range(5)}) > 1


def test_ranked_experts_join_the_control_only_where_a_layer_has_no_others() -> None:
    everything = [(0, expert) for expert in range(4)]
    (one, control, *_) = switch_settings(everything[:3], everything[3:], [1, 3], num_layers=1, num_experts=4, seed=0)
    assert not (_flat(control.off) | _flat(control.on)) & (_flat(one.off) | _flat(one.on))
    crowded = switch_settings(everything[:3], everything[3:], [3], num_layers=1, num_experts=4, seed=0)[1]
    assert crowded.counts == (3, 1)


def test_no_layer_has_more_on_than_its_top_k() -> None:
    assert limit_per_layer([(0, 1), (0, 2), (1, 0), (0, 3), (1, 4)], [1, 2]) == [(0, 1), (1, 0), (1, 4)]


def test_the_best_setting_lets_the_fewest_attacks_succeed() -> None:
    few, _, many, _ = _settings(1, 3)
    rates = {"steered-1": Rate(0.4, 0.3, 0.5, 10, 0), "steered-3": Rate(0.2, 0.1, 0.3, 10, 0)}
    assert best_setting([few, many], rates) == many
    assert best_setting([few, many], {**rates, "steered-1": rates["steered-3"]}) == few


def _moved(middle: float, group: str = "attack", half: float = 0.02) -> AuditChange:
    return AuditChange("steered-3", "original", group, middle, middle - half, middle + half, 0.01)


def test_the_claim_follows_the_numbers() -> None:
    chosen = _settings(3)[0]
    rate = Rate(0.2, 0.1, 0.3, 40, 0)
    fell, alike = {"attack": _moved(-0.6)}, {RANDOM: _moved(-0.5)}
    said = claim(chosen, 2, Rate(0.2, 0.1, 0.3, 40, 9), fell, alike)
    assert "With 3 experts off and 3 on, the best of 2 settings tried on these same prompts" in said
    assert "9 of 40 replies to attacks could not be scored" in said
    assert said.endswith("So these experts do lower attack success, and no cost is clear.")
    assert "of 1 settings" not in claim(chosen, 1, rate, fell, alike)
    costly = {**fell, "borderline": _moved(0.3, "borderline"), "benign": _moved(0.3, "benign")}
    costly |= {"plain": _moved(-0.4, "plain"), "wrapped": _moved(-0.01, "wrapped")}
    said = claim(chosen, 2, rate, costly, alike)
    assert "at a price: plain refusal moved by −40" in said
    assert "over-refusal moved by +30" in said
    assert "benign" not in said
    assert "wrappings" not in said
    assert "not clearly less than with random" in claim(chosen, 2, rate, fell, {RANDOM: _moved(-0.01)})
    assert "does not clearly lower" in claim(chosen, 2, rate, {"attack": _moved(-0.01)}, alike)
    for distance, verdict in ((0.3, "achieves more"), (-0.3, "achieves less"), (0.01, "no difference is clear")):
        said = claim(chosen, 2, rate, fell, {**alike, REPAIRED: _moved(distance)})
        assert said.endswith(f"points: {'the repair ' if 'achieves' in verdict else ''}{verdict}.")

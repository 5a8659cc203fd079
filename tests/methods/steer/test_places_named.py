"""Refusal planted in a routed expert, the shared expert, attention or a decoy is named by the verdict of the study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from planted_places import EXPERT, Place, refusing_in
from refusing_recipe import write_refusing
from seawall.artifacts.audit import AuditChange
from seawall.artifacts.directions import Directions
from seawall.artifacts.evaluation import Rate
from seawall.artifacts.steering import SteeringCondition, SteeringResult
from seawall.config import load_recipe
from seawall.jobs.steer import steer_recipe
from seawall.methods.steer.verdict import VERDICTS, Seat, beats_controls, seat_of, verdict
from seawall.runs.progress import Quiet

STEER: dict[str, Any] = {
    "positions": [-1],
    "train_prompts": 16,
    "validation_prompts": 8,
    "test_prompts": 15,
    "search": {"judged_tokens": 3, "judged_prompts": 5, "keep_least": 3, "coefficients": [0.5, 1.0]},
    "controls": {"pairs": 0, "triples": 0, "random_experts": 2, "random_vectors": 3},
}
SEATS: dict[Place, Seat] = {"routed": "expert", "shared": "shared", "attention": "attention", "decoy": "decoy"}


@pytest.mark.parametrize("place", SEATS)
def test_the_planted_place_is_named(place: Place, tmp_path: Path) -> None:
    path = write_refusing(tmp_path, refusing_in(place), **STEER)
    result = steer_recipe(load_recipe(path, []), tmp_path / "run", text=path.read_text(), reporter=Quiet())
    directions = Directions.load(tmp_path / "run/steer")
    assert seat_of(result, directions) == SEATS[place]
    assert result.verdict == verdict(result, directions)
    assert result.claim.startswith(f"{result.verdict[0].upper()}{result.verdict[1:]}. ")
    assert (directions.expert_part, directions.shared_LPD is None) == ("routed", False)
    if place == "routed":
        assert result.verdict == f"{VERDICTS['expert']}: MoE layer {EXPERT[0]}, expert {EXPERT[1]}"
        assert "One expert free to choose its place moves refusal further than each of these." in result.claim
    else:
        assert not beats_controls(result, "expert")
        assert not beats_controls(result, "expert-constrained")
    for control in ("shared", "random-1", "random-2", "random-3"):
        condition = result.condition(f"expert-constrained-{control}")
        assert list(condition.rates) == ["plain"]
        assert condition.harmless_kl is not None


def _moved(condition: str, reference: str, middle: float) -> AuditChange:
    half, p = (0.05, 0.001) if middle else (0.2, 1.0)
    return AuditChange(condition, reference, "plain", middle, middle - half, middle + half, p)


def _result(effects: dict[str, float]) -> SteeringResult:
    """Every condition against the original, the layer, and every other condition."""
    names = ["original", *effects]
    effects = {"original": 0.0, **effects}
    changes = [_moved(a, b, effects[a] - effects[b]) for a in names for b in names if a != b]
    rate = {"plain": Rate(0.5, 0.4, 0.6, 40)}
    conditions = tuple(SteeringCondition(name, "x", rate, 0.1) for name in names)
    return SteeringResult("sha256:0", "suppress", (), {}, conditions, tuple(changes))


def _directions(*, shared: bool, experts: bool = True) -> Directions:
    return Directions(
        "sha256:0",
        positions=(-1,),
        refusal_tokens=(1,),
        candidates=((0, 0),) if experts else (),
        moe_layers=(0,),
        prompts=(),
        layer_NPD=torch.zeros(1, 1, 4),
        expert_CPD=torch.zeros(int(experts), 1, 4),
        routing_difference_LE=torch.zeros(1, 1, dtype=torch.float64),
        shared_LPD=torch.zeros(1, 1, 4) if shared else None,
        expert_part="routed",
    )


WORKS = {"layer": -0.9, "random-direction-1": 0.0, "layer-without-logits": -0.9}
ATTENTION = {"ablated-attention": -0.8, "ablated-mlp": 0.0}
MLP = {"ablated-attention": 0.0, "ablated-mlp": -0.8}
ROUTED = {"ablated-routed": -0.8, "ablated-shared": 0.0}
SHARED = {"ablated-routed": 0.0, "ablated-shared": -0.8}
ALONE = {"expert": -0.9, "expert-random-1": 0.0, "expert-random-2": -0.1, "expert-shared": 0.0}


@pytest.mark.parametrize(
    ("effects", "seat"),
    [
        ({**WORKS, **MLP, **ROUTED, **ALONE}, "expert"),
        # One control of several does as much: no single expert.
        ({**WORKS, **MLP, **ROUTED, **ALONE, "expert-random-2": -0.9}, "routed"),
        ({**WORKS, **MLP, **ROUTED, **ALONE, "expert-shared": -0.9}, "routed"),
        # Without controls nothing is beaten.
        ({**WORKS, **MLP, **ROUTED, "expert": -0.9}, "routed"),
        ({**WORKS, **MLP, **SHARED, **ALONE}, "shared"),
        ({**WORKS, **MLP, "ablated-routed": -0.8, "ablated-shared": -0.8}, "mlp"),
        ({**WORKS, **ATTENTION, **ALONE}, "attention"),
        ({**WORKS, "ablated-attention": -0.8, "ablated-mlp": -0.8}, "undecided"),
        ({**WORKS, "layer-without-logits": 0.0, **ATTENTION}, "decoy"),
        ({**WORKS, "random-direction-1": -0.9, **ATTENTION}, "unspecific"),
        ({**WORKS, "layer": 0.0}, "nowhere"),
        ({**WORKS, "layer": 0.9}, "nowhere"),
        ({}, "nowhere"),
    ],
)
def test_every_step_needs_a_clear_difference(effects: dict[str, float], seat: Seat) -> None:
    assert seat_of(_result(effects), _directions(shared=True)) == seat


def test_without_a_shared_expert_all_of_the_block_is_routed_and_a_dense_model_has_an_mlp() -> None:
    result = _result({**WORKS, **MLP, **ALONE})
    assert seat_of(result, _directions(shared=False)) == "expert"
    assert seat_of(result, _directions(shared=False, experts=False)) == "mlp"


def test_a_seat_with_a_small_part_of_the_effect_says_so() -> None:
    small = {**WORKS, "ablated-attention": -0.18, "ablated-mlp": 0.08}
    result = _result(small)
    assert seat_of(result, _directions(shared=True)) == "attention"
    assert verdict(result, _directions(shared=True)) == (
        "attention writes the refusal, but only 20% of what the direction moves is lost by its ablation there"
    )
    whole = _result({**WORKS, **ATTENTION})
    assert verdict(whole, _directions(shared=True)) == VERDICTS["attention"]

"""A model over two devices measures and trains as on one: every function that takes a trace moves what it combines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_repair import INPUTS, TOKENIZER, config, run_repair, state
from torch import Tensor

from families import FAMILIES, random_ids, tiny
from seawall.data.types import Exchange, user
from seawall.methods.rasa.profiling.counting import count_routing
from seawall.methods.rasa.repair.drift import expert_usage
from seawall.methods.rasa.repair.steps import RepairLosses
from seawall.methods.rasa.selection.sensitivity import refusal_sensitivity
from seawall.methods.tune.drift import divergence, routing
from seawall.models.checkpointing import gradient_checkpointing
from seawall.models.generate import generate
from seawall.models.hidden.routes import route_agreement
from seawall.models.lora.low_rank import trainable_low_rank
from seawall.models.moe.capture import capture, routing_counts
from seawall.models.moe.find import MoEModel, find_moe
from seawall.models.moe.gates import gate_rules
from seawall.models.moe.replay import ReplayWeights, replay
from seawall.models.moe.routing import routing_rules
from seawall.models.moe.switch import steered
from two_devices import FIRST, SECOND, on, spread, two_devices

Measure = Callable[[MoEModel], Any]
PROMPTS = [user(text) for text in ("sing", "cook", "draw a cat")]


def _ids(moe: MoEModel) -> Tensor:
    return random_ids().to(moe.model.device)


def _counts(moe: MoEModel) -> Tensor:
    replies = generate(moe.model, TOKENIZER, PROMPTS, max_new_tokens=3, batch_size=2)
    sides = count_routing(moe, replies, batch_size=2)
    return torch.cat([tensor.flatten() for side in sides for tensor in (side.counts_PLE, side.mass_PLE)])


def _mask(moe: MoEModel) -> Tensor:
    with torch.no_grad(), capture(moe) as trace:
        moe.model(_ids(moe), use_cache=False)
    mask_T = torch.arange(trace.indices[0].shape[0], device=moe.model.device) % 2
    return torch.stack(routing_counts(trace, mask_T))


def _usage(moe: MoEModel) -> Tensor:
    return expert_usage(moe, TOKENIZER, PROMPTS, batch_size=2)


def _sensitivity(moe: MoEModel) -> Tensor:
    return refusal_sensitivity(moe, TOKENIZER, [Exchange(prompt, "No.", "x") for prompt in PROMPTS], batch_size=2)


def _replayed(weights: ReplayWeights) -> Measure:
    def measure(moe: MoEModel) -> Tensor:
        ids = _ids(moe)
        with torch.no_grad():
            with capture(moe, logits=True) as trace:
                moe.model(ids, use_cache=False)
            with replay(moe, trace, weights=weights):
                logits: Tensor = moe.model(ids.flip(0), use_cache=False).logits
        return logits

    return measure


def _rules(moe: MoEModel) -> list[Any]:
    with torch.no_grad(), capture(moe, logits=True) as trace:
        moe.model(_ids(moe), use_cache=False)
        scores = [rule.score for rule in routing_rules(moe, trace)]
    return [[rule.formula for rule in gate_rules(trace)], scores]


def _drift(moe: MoEModel) -> Tensor:
    rows = [[5, 6, 7], [8, 9, 10, 11]]
    now, then = routing(moe, rows), routing(moe, [row[::-1] for row in rows])
    return divergence(then, now, "mean").detach()


def _switched(moe: MoEModel) -> Tensor:
    with torch.no_grad(), steered(moe, off=[[0, 1], [2], []], on=[[], [3], [4]]):
        logits: Tensor = moe.model(_ids(moe), use_cache=False).logits
    return logits


def _agreement(moe: MoEModel) -> tuple[float, int]:
    ids = _ids(moe)

    def run() -> Tensor:
        moe.model(ids, use_cache=False)
        return torch.ones_like(ids)

    return route_agreement(moe, run, lambda: steered(moe, off=[[0], [], []], on=[[], [], []]))


def _losses(**settings: Any) -> Measure:
    def measure(moe: MoEModel) -> list[float]:
        losses = RepairLosses(moe, TOKENIZER, INPUTS, config(**settings), first_changed=2)
        pieces = [*losses.expert_loss(([0, 3, 6], [1])), *losses.router_loss([0, 1, 7])]
        return [float(loss.detach()) for loss, _ in pieces]

    return measure


MEASURES: dict[str, Measure] = {
    "counts": _counts,
    "mask": _mask,
    "usage": _usage,
    "sensitivity": _sensitivity,
    "recorded replay": _replayed("recorded"),
    "live replay": _replayed("live"),
    "rules": _rules,
    "drift": _drift,
    "switched": _switched,
    "agreement": _agreement,
    "losses": _losses(),
    "losses under replay": _losses(expert={"routing": "replay"}),
    "divergence": _losses(retain={"per_batch": 2, "loss": "kl"}),
    "the authors' router loss": _losses(router={"variant": "reference"}),
}


def _model(family: str) -> MoEModel:
    return find_moe(tiny(family, initializer_range=0.1))


def _plain(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


@pytest.mark.parametrize("family", ["glm4_moe", "qwen3_moe"])
@pytest.mark.parametrize("name", MEASURES)
def test_a_model_over_two_devices_measures_the_same(name: str, family: str) -> None:
    moe = _model(family)
    expected = MEASURES[name](moe)
    with two_devices():
        spread(moe.model)
        assert {parameter.device for parameter in moe.model.parameters()} == {FIRST, SECOND}
        value = _plain(MEASURES[name](find_moe(moe.model)))
    torch.testing.assert_close(value, expected) if isinstance(expected, Tensor) else _equal(value, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_the_same_bits_over_two_devices(family: str) -> None:
    moe = _model(family)
    with torch.no_grad():
        expected, counts = moe.model(_ids(moe), use_cache=False).logits, _mask(moe)
        with two_devices():
            spread(moe.model)
            placed = find_moe(moe.model)
            logits = placed.model(_ids(placed), use_cache=False).logits.cpu()
            assert torch.equal(_mask(placed).cpu(), counts)
    assert torch.equal(logits, expected)


def _equal(value: Any, expected: Any) -> None:
    if isinstance(expected[0], float):
        assert value == pytest.approx(expected, rel=1e-5)
    else:
        assert value == expected


def test_the_two_devices_do_not_mix() -> None:
    first, second = on(FIRST, torch.ones(2, 2)), on(SECOND, torch.ones(2, 2))
    with two_devices():
        with pytest.raises(RuntimeError, match="same device"):
            first + second
        with pytest.raises(RuntimeError, match="same device"):
            first + torch.ones(2)
        assert (first.to(SECOND) + second).device == SECOND


@pytest.mark.parametrize(
    "settings",
    [
        {"expert": {"lr": 1e-2, "attention_lr": 1e-3}},
        {"expert": {"lr": 1e-2, "routing": "replay"}, "gradient_checkpointing": True},
        {"parameters": "full", "gradient_checkpointing": True},
    ],
)
def test_a_repair_over_two_devices_gives_the_same_weights(settings: dict[str, Any], tmp_path: Path) -> None:
    chosen = config(rounds=1, early_stop={"enabled": False}, **settings)
    plain = _model("glm4_moe")
    run_repair(plain, tmp_path / "plain", chosen)
    moe = _model("glm4_moe")
    before = state(moe)
    with two_devices():
        spread(moe.model)
        run_repair(find_moe(moe.model), tmp_path / "spread", chosen)
        after = {name: tensor.cpu() for name, tensor in moe.model.state_dict().items()}
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())
    for name, tensor in state(plain).items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_low_rank_update_over_two_devices_has_the_same_gradients(checkpointed: bool) -> None:
    plain = _model("glm4_moe")
    expected = _factor_gradients(plain, checkpointed=checkpointed)
    moe = _model("glm4_moe")
    with two_devices():
        spread(moe.model)
        gradients = [gradient.cpu() for gradient in _factor_gradients(find_moe(moe.model), checkpointed=checkpointed)]
    assert len(gradients) == len(expected)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)


def _factor_gradients(moe: MoEModel, *, checkpointed: bool) -> list[Tensor]:
    low_rank = trainable_low_rank(moe.model, rank=2, seed=0)
    with low_rank as update, gradient_checkpointing(moe.model, enabled=checkpointed):
        factors = dict(update.named_parameters())
        moe.model(_ids(moe), use_cache=False).logits.float().square().mean().backward()
        return [factor.grad for factor in factors.values() if factor.grad is not None]

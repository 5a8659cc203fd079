from __future__ import annotations

from typing import Any

import pytest
import torch
from profiles import random_profile
from small_repair import INPUTS, TOKENIZER, small_model

from families import FAMILIES
from seawall.config.select import SelectConfig
from seawall.data.batching import collate
from seawall.data.templating import encode_example
from seawall.errors import ConfigError
from seawall.methods.rasa.selection import select
from seawall.methods.rasa.selection.controls import traffic_matched
from seawall.methods.rasa.selection.scores import gate_traffic
from seawall.methods.rasa.selection.sensitivity import refusal_sensitivity
from seawall.models.forward import run
from seawall.models.moe.calls import call_reader
from seawall.models.moe.capture import capture, routing_counts
from seawall.models.moe.find import MoEModel
from seawall.train.losses import response_cross_entropy

REFUSALS = list(INPUTS.refusals)
PLANTED_LAYER = 1


def _planted(family: str) -> tuple[MoEModel, int]:
    """A model in which one expert alone has an output, and this expert: the most used one of its layer."""
    moe = small_model(family)
    batch = collate([encode_example(TOKENIZER, exchange) for exchange in REFUSALS], 0)
    with torch.no_grad(), capture(moe) as trace:
        run(moe, batch, keep=1)
        counts_LE, _ = routing_counts(trace, batch.attention_mask_BT.flatten())
        planted = int(counts_LE[PLANTED_LAYER].argmax())
        for layer in moe.layers:
            down = layer.parameter("down_proj")
            own = down[planted].clone()
            down.zero_()
            if layer.index == PLANTED_LAYER:
                down[planted] = own
    return moe, planted


@pytest.mark.parametrize("family", ["glm4_moe", "mixtral", "olmoe", "qwen3_moe", "deepseek_v3"])
def test_the_planted_expert_is_found_and_no_control_takes_it(family: str) -> None:
    moe, planted = _planted(family)
    sensitivity_PLE = refusal_sensitivity(moe, TOKENIZER, REFUSALS, batch_size=4)
    others = sensitivity_PLE.clone()
    others[:, PLANTED_LAYER, planted] = 0
    assert float(others.abs().max()) == 0
    profile = random_profile(pairs=len(REFUSALS))
    settings: dict[str, Any] = {"k": 1, "bootstrap": 10}
    selected = select(profile, SelectConfig(method="sensitivity", **settings), sensitivity_PLE=sensitivity_PLE)
    assert selected.layers == ((), (planted,), ())
    assert selected.stability == 1.0
    for method in ("random", "frequency_matched", "traffic_matched"):
        config = SelectConfig(method=method, control_of="sensitivity", **settings)
        control = select(profile, config, sensitivity_PLE=sensitivity_PLE)
        assert control.count == 1
        assert planted not in control.layers[PLANTED_LAYER]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_rows_in_a_batch_are_the_rows_alone(family: str) -> None:
    moe = small_model(family)
    together = refusal_sensitivity(moe, TOKENIZER, REFUSALS, batch_size=8)
    apart = refusal_sensitivity(moe, TOKENIZER, REFUSALS, batch_size=1)
    assert float(together.abs().max()) > 0
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-6)
    assert all(parameter.grad is None for parameter in moe.model.parameters())


def test_it_is_the_slope_of_the_loss_in_the_gate_weight() -> None:
    moe = small_model("mixtral")
    layer, moved = moe.layers[-1], [0.0]
    read = call_reader(layer.experts)

    def move(experts: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        call = read(args, kwargs)
        weights_TK = call.weights_TK.clone()
        weights_TK[-3, 0] += moved[0]
        return call.with_routing(call.indices_TK, weights_TK)

    batch = collate([encode_example(TOKENIZER, REFUSALS[0])], 0)
    losses = []
    handle = layer.experts.register_forward_pre_hook(move, with_kwargs=True)
    for step in (-1e-2, 1e-2):
        moved[0] = step
        with torch.no_grad():
            logits_BTV = run(moe, batch, keep=batch.input_ids_BT.shape[1])
        losses.append(float(response_cross_entropy(logits_BTV, batch.labels_BT)))
    handle.remove()
    slope = abs(losses[1] - losses[0]) / 2e-2
    single = _single_token(moe, batch.input_ids_BT.shape[1] - 3)
    assert single == pytest.approx(slope, rel=2e-2)


def test_a_selection_by_sensitivity_needs_it() -> None:
    for config in (SelectConfig(method="sensitivity"), SelectConfig(method="random", control_of="sensitivity")):
        with pytest.raises(ConfigError, match="without the pairs' sensitivity"):
            select(random_profile(), config)


def _single_token(moe: MoEModel, position: int) -> float:
    """|d loss / d gate weight| of the first expert of one token in the last layer, by autograd itself."""
    layer, shifts = moe.layers[-1], []
    read = call_reader(layer.experts)

    def shift(experts: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        call = read(args, kwargs)
        shifts.append(torch.zeros_like(call.weights_TK, requires_grad=True))
        return call.with_routing(call.indices_TK, call.weights_TK + shifts[-1])

    batch = collate([encode_example(TOKENIZER, REFUSALS[0])], 0)
    handle = layer.experts.register_forward_pre_hook(shift, with_kwargs=True)
    logits_BTV = run(moe, batch, keep=batch.input_ids_BT.shape[1])
    handle.remove()
    (gradient_TK,) = torch.autograd.grad(response_cross_entropy(logits_BTV, batch.labels_BT).sum(), shifts)
    total = refusal_sensitivity(moe, TOKENIZER, REFUSALS[:1], batch_size=1)[0, -1]
    torch.testing.assert_close(total.sum(), gradient_TK.abs().sum())
    return float(gradient_TK[position, 0].abs())


def test_a_control_carries_the_same_gate_traffic_by_other_experts() -> None:
    profile = random_profile(layers=4, experts=32)
    shares_LE = gate_traffic(profile, "generated")
    torch.testing.assert_close(shares_LE.sum(-1), torch.ones(4, dtype=torch.float64))
    selected = [(layer, expert) for layer in range(4) for expert in shares_LE[layer].topk(3).indices.tolist()[1:]]
    own = sum(float(shares_LE[place]) for place in selected)
    controls = [traffic_matched(selected, shares_LE, seed) for seed in range(5)]
    for drawn in controls:
        assert len(set(drawn)) == len(selected)
        assert not set(drawn) & set(selected)
        assert sum(float(shares_LE[place]) for place in drawn) == pytest.approx(own, rel=0.01)
    assert len({frozenset(drawn) for drawn in controls}) > 1


def test_a_score_names_no_control() -> None:
    with pytest.raises(ValueError, match="control_of"):
        SelectConfig(method="sensitivity", control_of="frequency")
    assert SelectConfig(method="random").score == "frequency"
    assert SelectConfig(method="traffic_matched", control_of="mass").score == "mass"

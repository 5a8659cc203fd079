from __future__ import annotations

import pytest
import torch

from families import FAMILIES, IMPLEMENTATIONS, UNUSUAL, checkpoint_activations, random_ids, tiny
from seawall.errors import SeawallError, UnsupportedModelError
from seawall.models.moe.capture import RoutingTrace, capture
from seawall.models.moe.experts import trainable_experts
from seawall.models.moe.find import MoEModel, find_moe
from seawall.models.moe.gates import gate_rules
from seawall.models.moe.replay import replay
from seawall.models.moe.routers import router_parameters


def _recorded(moe: MoEModel) -> tuple[torch.Tensor, RoutingTrace]:
    with torch.no_grad(), capture(moe, logits=True) as trace:
        return moe.model(random_ids()).logits, trace


def _perturb_routers(moe: MoEModel) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in router_parameters(moe).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", [*FAMILIES, *UNUSUAL])
def test_replay_undoes_any_change_of_the_routers_to_the_bit(
    family: str, implementation: str, dtype: torch.dtype
) -> None:
    moe = find_moe(tiny(family, implementation=implementation).to(dtype))
    before, trace = _recorded(moe)
    _perturb_routers(moe)
    with torch.no_grad():
        assert not torch.equal(moe.model(random_ids()).logits, before)
        with replay(moe, trace):
            assert torch.equal(moe.model(random_ids()).logits, before)
        assert not torch.equal(moe.model(random_ids()).logits, before)


def test_capture_inside_replay_sees_the_replayed_routing() -> None:
    moe = find_moe(tiny("qwen3_moe"))
    _, trace = _recorded(moe)
    _perturb_routers(moe)
    with torch.no_grad(), replay(moe, trace), capture(moe) as again:
        moe.model(random_ids())
    assert all(torch.equal(one, two) for one, two in zip(trace.indices, again.indices, strict=True))


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"phimoe"}))
def test_live_weights_of_unchanged_routers_are_the_recorded_ones(family: str) -> None:
    moe = find_moe(tiny(family))
    before, trace = _recorded(moe)
    with torch.no_grad(), replay(moe, trace, weights="live"):
        torch.testing.assert_close(moe.model(random_ids()).logits, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"phimoe"}))
def test_live_weights_follow_the_routers_on_the_recorded_experts(family: str) -> None:
    moe = find_moe(tiny(family))
    before, trace = _recorded(moe)
    _perturb_routers(moe)
    with replay(moe, trace, weights="live"), capture(moe) as again:
        logits = moe.model(random_ids()).logits
    assert all(torch.equal(one, two) for one, two in zip(trace.indices, again.indices, strict=True))
    assert not torch.allclose(logits, before)
    logits.sum().backward()
    weights = [parameter for name, parameter in router_parameters(moe).items() if name.endswith("weight")]
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in weights)


def test_scaling_factors_are_found_from_the_record() -> None:
    _, trace = _recorded(find_moe(tiny("deepseek_v3")))
    rules = gate_rules(trace)
    assert {rule.formula for rule in rules} == {"sigmoid, normalised over the chosen"}
    assert [rule.scale for rule in rules] == pytest.approx([2.5] * 3, rel=1e-6)


def test_live_weights_are_refused_where_no_formula_gives_the_recorded_ones() -> None:
    moe = find_moe(tiny("phimoe"))
    _, trace = _recorded(moe)
    with pytest.raises(UnsupportedModelError, match=r'cannot be recomputed from its logits.*weights="recorded"'):
        with replay(moe, trace, weights="live"):
            pass


def test_live_weights_need_logits() -> None:
    moe = find_moe(tiny("olmoe"))
    with torch.no_grad(), capture(moe) as trace:
        moe.model(random_ids())
    with (
        pytest.raises(UnsupportedModelError, match="the trace has no router logits"),
        replay(moe, trace, weights="live"),
    ):
        pass


@pytest.mark.parametrize("weights", ["recorded", "live"])
def test_another_input_is_refused(weights: str) -> None:
    moe = find_moe(tiny("olmoe"))
    _, trace = _recorded(moe)
    with replay(moe, trace, weights="live" if weights == "live" else "recorded"):
        with pytest.raises(SeawallError, match="got 10 tokens; expected the 33 tokens of the trace"):
            moe.model(random_ids(2, 5))


def test_an_empty_trace_is_refused() -> None:
    moe = find_moe(tiny("olmoe"))
    with (
        pytest.raises(UnsupportedModelError, match="got the routing of 0 of 3 MoE layers"),
        replay(moe, RoutingTrace(3, 8)),
    ):
        pass


@pytest.mark.parametrize("weights", ["recorded", "live"])
def test_replay_ends_with_its_block_even_after_an_error(weights: str) -> None:
    moe = find_moe(tiny("olmoe"))
    _, trace = _recorded(moe)
    _perturb_routers(moe)
    with torch.no_grad():
        perturbed = moe.model(random_ids()).logits
        with pytest.raises(RuntimeError, match="stop"):
            with replay(moe, trace, weights="live" if weights == "live" else "recorded"):
                raise RuntimeError("stop")
        assert torch.equal(moe.model(random_ids()).logits, perturbed)
    assert not any(
        vars(module)[key] for module in moe.model.modules() for key in ("_forward_hooks", "_forward_pre_hooks")
    )


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_replay_holds_under_gradient_checkpointing(family: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny(family)
        moe = find_moe(model)
        _, trace = _recorded(moe)
        _perturb_routers(moe)
        if checkpointing:
            checkpoint_activations(model)
        with replay(moe, trace):
            torch.autograd.backward(model(random_ids()).logits.square().mean())
        gradients.append([layer.parameter(layer.weights[0]).grad for layer in moe.layers])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_experts_train_under_replayed_routing(family: str, implementation: str) -> None:
    moe = find_moe(tiny(family, implementation=implementation))
    before, trace = _recorded(moe)
    _perturb_routers(moe)
    with trainable_experts(moe, [[0, 1, 2, 3]] * moe.num_layers) as copies, replay(moe, trace):
        assert (moe.model(random_ids()).logits - before).abs().max() <= 1e-5
        optimizer = torch.optim.AdamW(copies.parameters(), lr=1e-2)
        torch.autograd.backward(moe.model(random_ids()).logits.square().mean())
        optimizer.step()
        with capture(moe) as again:
            moe.model(random_ids())
    assert all(torch.equal(one, two) for one, two in zip(trace.indices, again.indices, strict=True))

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from families import FAMILIES, IMPLEMENTATIONS, NUM_EXPERTS, TOP_K, UNUSUAL, random_ids, tiny
from seawall.models.moe.calls import ExpertsCall
from seawall.models.moe.capture import capture
from seawall.models.moe.find import MoEModel, find_moe
from seawall.models.moe.switch import steered
from watching import watching

OFF = [(0, 3, 5), (), (1,)]
ON = [(2,), (4, 6), ()]


def _logits(moe: MoEModel) -> Tensor:
    with torch.no_grad():
        logits: Tensor = moe.model(random_ids()).logits
    return logits


def _called(moe: MoEModel) -> tuple[list[ExpertsCall], list[Tensor]]:
    """Every layer's call as the experts got it, and what they gave."""
    with watching(moe) as seen:
        _logits(moe)
    return [call for call, _ in seen], [output for _, output in seen]


def _one_by_one(moe: MoEModel, at: int, call: ExpertsCall, off: tuple[int, ...]) -> Tensor:
    """What layer `at` must give: each allowed expert asked alone, the sum scaled to the weight that the token had."""
    total_T1 = call.weights_TK.sum(-1, keepdim=True)
    kept_TK = torch.ones_like(call.weights_TK, dtype=torch.bool)
    for expert in off:
        kept_TK &= call.indices_TK != expert
    sum_T1 = (call.weights_TK * kept_TK).sum(-1, keepdim=True)
    found = torch.zeros_like(call.hidden_TD)
    for slot in range(call.indices_TK.shape[1]):
        index_T1, one_T1 = call.indices_TK[:, slot : slot + 1], torch.ones_like(call.weights_TK[:, :1])
        with torch.no_grad():
            alone_TD = moe.layers[at].experts(call.hidden_TD, index_T1, one_T1)
        share_T1 = (call.weights_TK[:, slot : slot + 1] / sum_T1 * total_T1).nan_to_num(0.0, 0.0, 0.0)
        found += torch.where(kept_TK[:, slot : slot + 1], alone_TD * share_T1, 0)
    return found


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", [*FAMILIES, *UNUSUAL])
def test_experts_that_are_off_add_nothing_and_the_others_take_their_weight(family: str, implementation: str) -> None:
    moe = find_moe(tiny(family, implementation=implementation))
    plain, _ = _called(moe)
    with steered(moe, off=OFF):
        _, outputs = _called(moe)
    hit = torch.isin(plain[0].indices_TK, torch.tensor(OFF[0])).any(-1)
    assert hit.any()
    expected = _one_by_one(moe, 0, plain[0], OFF[0])
    torch.testing.assert_close(outputs[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [*FAMILIES, *UNUSUAL])
def test_weights_of_what_is_off_do_not_matter(family: str) -> None:
    moe = find_moe(tiny(family))
    before = _logits(moe)
    with steered(moe, off=OFF):
        masked = _logits(moe)
    assert not torch.equal(masked, before)
    with torch.no_grad():
        for layer, experts in zip(moe.layers, OFF, strict=True):
            for weight in layer.weights:
                layer.parameter(weight)[list(experts)] *= -3
    assert not torch.equal(_logits(moe), before)
    with steered(moe, off=OFF):
        assert torch.equal(_logits(moe), masked)


@pytest.mark.parametrize("family", [*FAMILIES, *UNUSUAL])
def test_every_token_uses_what_is_on_with_its_largest_weight_and_an_unchanged_sum(family: str) -> None:
    moe = find_moe(tiny(family))
    plain, _ = _called(moe)
    with steered(moe, on=ON), capture(moe) as trace:
        _logits(moe)
    for indices_TK, weights_TK, experts in zip(trace.indices, trace.weights, ON, strict=True):
        for expert in experts:
            assert (indices_TK == expert).any(-1).all()
            chosen_T = weights_TK[indices_TK == expert]
            torch.testing.assert_close(chosen_T, weights_TK.amax(-1))
        assert all(len(set(row)) == len(row) for row in indices_TK.tolist())
    torch.testing.assert_close(trace.weights[0].sum(-1), plain[0].weights_TK.sum(-1))
    assert any(len(experts) == TOP_K for experts in ON)


def test_nothing_off_and_experts_that_no_token_uses_change_no_bit() -> None:
    moe = find_moe(tiny("qwen3_moe"))
    before = _logits(moe)
    calls, _ = _called(moe)
    unused = [sorted(set(range(NUM_EXPERTS)) - set(call.indices_TK[:2].flatten().tolist()))[:4] for call in calls]
    with steered(moe), torch.no_grad():
        assert torch.equal(_logits(moe), before)
    with steered(moe, off=[unused[0], (), ()]):
        _, outputs = _called(moe)
    _, originals = _called(moe)
    assert torch.equal(outputs[0][:2], originals[0][:2])
    assert not torch.equal(outputs[0], originals[0])


def test_with_all_experts_off_the_layer_gives_zero() -> None:
    moe = find_moe(tiny("mixtral"))
    with steered(moe, off=[range(NUM_EXPERTS)] * moe.num_layers):
        _, outputs = _called(moe)
    assert all(output.abs().max() == 0 for output in outputs)


def test_steering_ends_with_its_block_even_after_an_error() -> None:
    moe = find_moe(tiny("olmoe"))
    before = _logits(moe)
    with pytest.raises(RuntimeError, match="stop"):
        with steered(moe, off=OFF, on=[(7,), (), ()]):
            raise RuntimeError("stop")
    assert torch.equal(_logits(moe), before)
    assert not any(vars(module)["_forward_pre_hooks"] for module in moe.model.modules())

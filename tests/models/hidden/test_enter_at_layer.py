from __future__ import annotations

import pytest
import torch

from families import FAMILIES, RETURNING, random_ids, tiny
from seawall.models.hidden.enter_at_layer import can_enter_at_layer, enter_at_layer
from seawall.models.hidden.residual import capture_residual, decoder_layers


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_entered_with_its_own_hidden_states_is_the_whole_pass(family: str) -> None:
    model, ids = tiny(family), random_ids()
    assert can_enter_at_layer(model)
    with torch.no_grad():
        with capture_residual(model, [1, 2]) as trace:
            whole = model(ids, use_cache=False).logits
        for layer in (1, 2):
            with enter_at_layer(model, layer, trace.inputs[layer]):
                assert torch.equal(model(ids, use_cache=False).logits, whole)
        assert torch.equal(model(ids, use_cache=False).logits, whole)


def test_the_layers_below_do_not_run_and_come_back_after_an_error() -> None:
    model, ids = tiny("mixtral"), random_ids()
    ran: list[int] = []
    for at, block in enumerate(decoder_layers(model)):
        block.get_submodule("mlp").register_forward_pre_hook(lambda module, args, at=at: ran.append(at))
    with torch.no_grad(), capture_residual(model, [2]) as trace:
        model(ids)
    ran.clear()
    with pytest.raises(IndexError), torch.no_grad(), enter_at_layer(model, 2, trace.inputs[2]):
        model(ids + 10**6, use_cache=False)
    with torch.no_grad(), enter_at_layer(model, 2, trace.inputs[2]):
        model(ids, use_cache=False)
    assert ran == [2]
    ran.clear()
    with torch.no_grad():
        model(ids)
    assert ran == [0, 1, 2]


def test_gradients_reach_what_lies_above() -> None:
    model, ids = tiny("olmoe"), random_ids()
    with torch.no_grad(), capture_residual(model, [2]) as trace:
        model(ids)
    grads = []
    for hidden in (None, trace.inputs[2]):
        model.zero_grad()
        if hidden is None:
            model(ids, use_cache=False).logits.square().mean().backward()
        else:
            with enter_at_layer(model, 2, hidden):
                model(ids, use_cache=False).logits.square().mean().backward()
        blocks = decoder_layers(model)
        grads.append([parameter.grad for parameter in blocks[2].parameters()])
        below = [parameter.grad for parameter in blocks[0].parameters()]
        assert all(grad is None for grad in below) == (hidden is not None)
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True) if one is not None)


def test_models_whose_layers_share_more_than_hidden_states_are_told() -> None:
    model = tiny("mixtral")
    model.config.num_kv_shared_layers = 1
    assert not can_enter_at_layer(model)


@pytest.mark.parametrize("family", RETURNING)
def test_models_whose_layers_return_more_than_hidden_states_are_told(family: str) -> None:
    model = tiny(family)
    assert can_enter_at_layer(model, 0)
    assert [can_enter_at_layer(model, layer) for layer in (1, 2, 3)] == [False] * 3
    assert not can_enter_at_layer(model)
    assert not model.training

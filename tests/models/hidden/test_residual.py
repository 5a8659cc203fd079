from __future__ import annotations

import pytest
import torch
from torch import nn

from families import FAMILIES, UNUSUAL, random_ids, tiny
from seawall.errors import ConfigError, UnsupportedModelError
from seawall.models.hidden.residual import capture_residual, decoder_layers


def _hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("family", [*FAMILIES, *UNUSUAL, "llama"])
def test_block_inputs_are_what_transformers_calls_hidden_states(family: str) -> None:
    model, ids = tiny(family), random_ids()
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True).hidden_states
        with capture_residual(model) as trace:
            model(ids)
    layers = model.config.num_hidden_layers
    assert sorted(trace.inputs) == list(range(layers))
    for layer in range(layers):
        assert torch.equal(trace.inputs[layer], expected[layer]), layer


def test_chosen_layers_the_last_pass_and_no_trace_left() -> None:
    model = tiny("mixtral")
    before = _hooks(model)
    with torch.no_grad(), capture_residual(model, [2, 0]) as trace:
        model(random_ids(seed=1))
        first = dict(trace.inputs)
        model(random_ids(seed=2))
    assert sorted(trace.inputs) == [0, 2]
    assert not torch.equal(trace.inputs[2], first[2])
    assert _hooks(model) == before
    kept = trace.inputs[0]
    with torch.no_grad():
        model(random_ids(seed=3))
    assert trace.inputs[0] is kept


def test_hooks_go_when_the_model_fails() -> None:
    model = tiny("mixtral")
    with pytest.raises(IndexError), capture_residual(model):
        model(torch.full((1, 2), 10_000))
    assert _hooks(model) == 0


def test_gradients_are_cut_unless_asked() -> None:
    model = tiny("mixtral")
    with capture_residual(model, [1]) as cut, capture_residual(model, [1], detach=False) as kept:
        model(random_ids())
    assert not cut.inputs[1].requires_grad
    assert kept.inputs[1].requires_grad


@pytest.mark.parametrize("layer", [3, -1])
def test_a_layer_that_does_not_exist_is_named(layer: int) -> None:
    with pytest.raises(ConfigError, match=rf"decoder layer {layer} does not exist; expected 0 to 2"):
        with capture_residual(tiny("mixtral"), [0, layer]):
            pass


def test_lists_inside_the_decoder_do_not_confuse() -> None:
    model = tiny("mixtral")
    model.model.layers[0].parts = nn.ModuleList([nn.Identity() for _ in range(3)])
    assert decoder_layers(model) is model.model.layers


def test_several_lists_or_none_are_refused() -> None:
    model = tiny("mixtral")
    model.model.tower = nn.ModuleList([nn.Identity() for _ in range(3)])
    with pytest.raises(UnsupportedModelError, match=r"2 lists of 3 modules \(model\.layers, model\.tower\)"):
        decoder_layers(model)
    model.config.num_hidden_layers = 5
    with pytest.raises(UnsupportedModelError, match=r"0 lists of 5 modules \(none\)"):
        decoder_layers(model)

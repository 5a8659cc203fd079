from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from families import FAMILIES, NUM_EXPERTS, NUM_LAYERS, TOP_K, UNUSUAL, tiny
from seawall.errors import UnsupportedModelError
from seawall.models.moe.find import find_moe, find_moe_if_any, stacked_weights

DENSE_FIRST = {"deepseek_v3", "glm4_moe", "ernie4_5_moe"}


@pytest.mark.parametrize("family", [*FAMILIES, *UNUSUAL])
def test_every_family_is_found_by_its_structure(family: str) -> None:
    moe = find_moe(tiny(family))
    assert (moe.num_layers, moe.num_experts, moe.top_k) == (NUM_LAYERS, NUM_EXPERTS, TOP_K)
    assert moe.total_experts == NUM_LAYERS * NUM_EXPERTS
    assert moe.describe() == "3 MoE layers x 8 experts, top-2, 0 skipped"
    for index, layer in enumerate(moe.layers):
        assert layer.index == index
        assert moe.model.get_submodule(layer.experts_name) is layer.experts
        assert moe.model.get_submodule(layer.router_name) is layer.router
        assert layer.router_logits_index == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_decoder_layers_are_passed_over(family: str) -> None:
    first = 1 if family in DENSE_FIRST else 0
    assert [layer.decoder_layer for layer in find_moe(tiny(family)).layers] == [first, first + 1, first + 2]


def test_biases_of_experts_are_weights_too() -> None:
    layer = find_moe(tiny("gpt_oss")).layers[0]
    assert layer.weights == ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
    assert {len(tensor) for tensor in stacked_weights(layer).values()} == {NUM_EXPERTS}
    assert "model.layers.0.mlp.experts.down_proj_bias" in stacked_weights(layer)


def test_a_model_without_weights_is_enough() -> None:
    config = tiny("olmoe").config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert find_moe(model).total_experts == NUM_LAYERS * NUM_EXPERTS


def test_a_dense_model_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"LlamaForCausalLM is a dense model.*Mixtral, OLMoE"):
        find_moe(tiny("llama"))


def test_a_dense_model_may_be_asked_for() -> None:
    assert find_moe_if_any(tiny("llama")) is None
    with pytest.raises(UnsupportedModelError, match=r"Llama4TextExperts at .*; got parameters"):
        find_moe_if_any(tiny("llama4_text"))


def test_experts_that_take_one_argument_are_refused() -> None:
    with pytest.raises(UnsupportedModelError) as error:
        find_moe(tiny("llama4_text"))
    message = str(error.value)
    assert "Llama4TextExperts at model.layers.0.feed_forward.experts" in message
    assert "gate_up_proj (8, 32, 32), down_proj (8, 16, 32)" in message
    assert "forward(hidden_states)" in message
    assert "use a mixture-of-experts model whose class" in message


class OddExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(NUM_EXPERTS, 4, 4))

    def forward(self, hidden: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        return hidden


def test_unreachable_experts_are_refused_even_beside_others() -> None:
    model = tiny("mixtral")
    model.model.layers[1].self_attn.add_module("input_linear", OddExperts())
    with pytest.raises(
        UnsupportedModelError, match=r"OddExperts at .*input_linear.*\(8, 4, 4\).*forward\(hidden, sizes"
    ):
        find_moe(model)


def test_other_modules_with_stacked_parameters_are_counted_not_touched() -> None:
    model = tiny("mixtral")
    model.model.layers[1].mlp.add_module("shared_experts", OddExperts())
    model.model.layers[2].add_module("conv", nn.Conv1d(4, 4, 3))
    moe = find_moe(model)
    assert moe.skipped == ("model.layers.1.mlp.shared_experts (OddExperts)",)
    assert moe.describe().endswith("1 skipped")


def test_layers_of_different_size_are_refused() -> None:
    model = tiny("mixtral")
    model.model.layers[1].mlp = tiny("mixtral", num_local_experts=4).model.layers[1].mlp
    with pytest.raises(UnsupportedModelError, match=r"differ in size; got experts and top-k of \[\(4, 2\), \(8, 2\)\]"):
        find_moe(model)


def test_a_configuration_without_top_k_is_refused() -> None:
    model = tiny("gemma4_text")
    model.config.top_k_experts = None
    with pytest.raises(UnsupportedModelError, match=r"Gemma4TextConfig .*num_experts_per_tok"):
        find_moe(model)


def test_a_router_that_nobody_declares_is_found_by_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("mixtral")
    declared = find_moe(model).layers[0].router_name
    for module in (model, model.model):
        monkeypatch.setattr(type(module), "_can_record_outputs", None)
    assert find_moe(model).layers[0].router_name == declared
    model.model.layers[0].mlp.gate = nn.Identity()
    with pytest.raises(UnsupportedModelError, match="no router found in MixtralSparseMoeBlock; got 0 children"):
        find_moe(model)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("family", ["mixtral", "glm4_moe", "gpt_oss"])
@pytest.mark.parametrize("target", ["experts", "router"])
def test_an_adapter_around_experts_or_router_hides_neither(family: str, target: str) -> None:
    peft = pytest.importorskip("peft")
    plain = find_moe(tiny(family))
    router = f"{plain.layers[0].router_name.rpartition('.')[2]}.weight"
    targets = [router] if target == "router" else ["experts.gate_up_proj", "experts.down_proj"]
    config = peft.LoraConfig(r=3, init_lora_weights=False, target_modules=[], target_parameters=targets)
    found = find_moe(peft.get_peft_model(tiny(family), config).get_base_model())
    for one, other in zip(found.layers, plain.layers, strict=True):
        assert one.router_name.removesuffix(".base_layer") == other.router_name
        assert one.experts_name.replace(".base_layer", "") == other.experts_name
        assert (one.num_experts, one.top_k, one.weights) == (other.num_experts, other.top_k, other.weights)
        assert type(one.router) is type(other.router)

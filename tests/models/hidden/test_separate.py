"""Halves that are added to the residual stream pass, whatever the multiplier; those that contain it are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from dense import DENSE, dense
from families import FAMILIES, NUM_EXPERTS, TOP_K, VOCABULARY, WIDTH, random_ids, tiny
from seawall.errors import UnsupportedModelError
from seawall.models.hidden.expert_outputs import expert_outputs
from seawall.models.hidden.intervene import Addition, Site, added
from seawall.models.hidden.residual import capture_residual
from seawall.models.hidden.separate import require_separate_halves
from seawall.models.moe.find import find_moe

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.25,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
_GRANITE = {"residual_multiplier": 0.22, "attention_multiplier": 0.3}
OWN: dict[str, dict[str, Any]] = {
    "granite": {**_SIZES, **_GRANITE},
    "granitemoe": {**_SIZES, **_GRANITE, "num_local_experts": NUM_EXPERTS, "num_experts_per_tok": TOP_K},
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 3, "n_head": 4, "initializer_range": 0.25},
    "gpt_neox": _SIZES,
    "cohere": _SIZES,
    "phi": _SIZES,
    "falcon": {**_SIZES, "alibi": False, "new_decoder_architecture": False},
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": 3, "n_head": 4, "initializer_range": 0.25},
    "mpt": {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_layers": 3, "n_heads": 4, "initializer_range": 0.25},
}


def _model(family: str) -> PreTrainedModel:
    if family not in OWN:
        return dense(family) if family in DENSE else tiny(family)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**OWN[family]))
    return model.eval()


@pytest.mark.parametrize("family", [*FAMILIES, *DENSE, *(name for name in OWN if name not in ("bloom", "mpt"))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_halves_that_are_added_to_the_stream_pass(family: str, dtype: torch.dtype) -> None:
    model = _model(family).to(dtype)
    ids = random_ids()
    with torch.no_grad():
        before = model(ids).logits
        require_separate_halves(model)
        assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("family", ["bloom", "mpt"])
def test_halves_that_contain_the_stream_are_refused_in_a_line(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"decoder layer 0 \(.*Block\) cannot be changed apart") as caught:
        require_separate_halves(_model(family))
    assert "\n" not in str(caught.value)


def test_a_factor_that_the_layer_does_not_state_is_refused() -> None:
    model = _model("granite")
    vars(model.get_decoder().layers[1])["residual_multiplier"] = 0.22
    model.get_decoder().layers[1].self_attn.register_forward_hook(
        lambda module, args, output: (2 * output[0], *output[1:])
    )
    require_separate_halves(model)  # the half itself is twice as large, which is its own affair
    layer = model.get_decoder().layers[2]
    vars(layer)["residual_multiplier"] = torch.tensor(0.22)
    forward = layer.forward
    vars(layer)["forward"] = lambda hidden, *args, **kw: hidden + 0.5 * (forward(hidden, *args, **kw) - hidden)
    with pytest.raises(UnsupportedModelError, match=r"decoder layer 2 .* scales what its halves write"):
        require_separate_halves(model)


@pytest.mark.parametrize("family", ["granite", "granitemoe"])
@pytest.mark.parametrize("site", ["attention", "mlp"])
def test_an_addition_arrives_in_the_stream_whole_whatever_the_multiplier(family: str, site: Site) -> None:
    model, vector_D = _model(family), torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), capture_residual(model) as plain:
        model(random_ids(), use_cache=False)
    # The layer's other half reads the stream before (attention) or is the last to write (mlp): seen at the mlp alone.
    with torch.no_grad(), added(model, [Addition(1, vector_D, 2.0, site)]), capture_residual(model) as moved:
        model(random_ids(), use_cache=False)
    shift_BTD = moved.inputs[2] - plain.inputs[2]
    along = (shift_BTD @ vector_D) / vector_D.square().sum()
    if site == "mlp":
        torch.testing.assert_close(shift_BTD, (2 * vector_D).expand_as(shift_BTD), rtol=1e-4, atol=1e-4)
    else:
        assert (along - 2).abs().mean() < 1


def test_an_expert_of_granite_is_read_on_the_scale_of_its_block() -> None:
    moe = find_moe(_model("granitemoe"))
    seen: list[torch.Tensor] = []
    with expert_outputs(moe, {0: (1,)}, positions=(-1,), sink=lambda *part: seen.append(part[2])), torch.no_grad():
        moe.model(random_ids())
    assert seen[0].shape == (1, 3, 1, WIDTH)

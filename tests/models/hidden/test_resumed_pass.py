from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dense import DENSE, dense
from families import FAMILIES, IMPLEMENTATIONS, UNUSUAL, WIDTH, random_ids, tiny
from seawall.errors import ConfigError, SeawallError
from seawall.models.hidden.added_by_expert import ExpertAddition, experts_added
from seawall.models.hidden.intervene import SITES, Addition, Site, ablated, added
from seawall.models.hidden.residual import decoder_layers
from seawall.models.hidden.resume import BlockInputs, record_block_inputs, resumed
from seawall.models.moe.capture import capture
from seawall.models.moe.find import find_moe


@cache
def _model(family: str, implementation: str = "grouped_mm") -> PreTrainedModel:
    return dense(family) if family in DENSE else tiny(family, implementation=implementation)


def _padded(repeats: int = 1) -> dict[str, Any]:
    """A batch padded on the left."""
    lengths = torch.tensor([11, 4, 7])
    mask_BT = (torch.arange(11) >= 11 - lengths[:, None]).long()
    positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    batch = {"input_ids": random_ids() * mask_BT, "attention_mask": mask_BT, "position_ids": positions_BT}
    return {name: tensor.repeat(repeats, 1) for name, tensor in batch.items()} | {"use_cache": False}


def _logits(model: PreTrainedModel, repeats: int = 1) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**_padded(repeats)).logits
    return logits


def _recorded(model: PreTrainedModel) -> tuple[Tensor, BlockInputs]:
    with record_block_inputs(model) as recording:
        return _logits(model), recording


def _cases() -> list[tuple[str, str]]:
    every = [(family, "grouped_mm") for family in (*FAMILIES, *UNUSUAL, *DENSE)]
    return every + [(family, way) for family in ("qwen3_moe", "deepseek_v3") for way in IMPLEMENTATIONS[:2]]


@pytest.mark.parametrize(("family", "implementation"), _cases())
def test_a_pass_from_the_middle_is_the_plain_pass_to_the_bit(family: str, implementation: str) -> None:
    model = _model(family, implementation)
    before, recording = _recorded(model)
    for layer in range(len(decoder_layers(model))):
        with resumed(model, recording, layer):
            assert torch.equal(_logits(model), before), layer
    assert torch.equal(_logits(model), before)


@pytest.mark.parametrize("family", ["mixtral", "glm4_moe", "gpt_oss", "llama", "gemma3_text"])
def test_rows_are_repeated_batch_by_batch(family: str) -> None:
    model = _model(family)
    before, recording = _recorded(model)
    with resumed(model, recording, 2, repeats=4):
        torch.testing.assert_close(_logits(model, 4), before.repeat(4, 1, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", ["mixtral", "glm4_moe", "gemma2"])
@pytest.mark.parametrize("outside", [True, False])
def test_coefficients_per_row_over_repeats_are_plain_passes_with_each(family: str, site: Site, outside: bool) -> None:
    """Also at the very layer where the pass starts, whichever `with` is the outer one."""
    model, vector_D = _model(family), torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    _, recording = _recorded(model)
    coefficients_R = torch.tensor([-2.0, 0.0, 5.0])
    every = added(model, [Addition(1, vector_D, coefficients_R.repeat_interleave(3), site)])
    start = resumed(model, recording, 1, repeats=3)
    with start if outside else every, every if outside else start:
        together = _logits(model, 3)
    for at, coefficient in enumerate(coefficients_R.tolist()):
        with added(model, [Addition(1, vector_D, coefficient, site)]):
            torch.testing.assert_close(together[3 * at : 3 * at + 3], _logits(model), rtol=1e-4, atol=1e-4)


def test_other_changes_above_the_start_act_as_ever() -> None:
    model = _model("qwen2_moe")
    moe = find_moe(model)
    _, recording = _recorded(model)
    generator = torch.Generator().manual_seed(0)
    direction_D, vectors = torch.randn(WIDTH, generator=generator), torch.randn(2, WIDTH, generator=generator)
    with ablated(model, direction_D, layers=[1, 2]):
        with experts_added(moe, [ExpertAddition(2, (0, 7), vectors, 9.0)]):
            expected = _logits(model)
            with resumed(model, recording, 1):
                assert torch.equal(_logits(model), expected)


def test_layers_below_the_start_are_not_computed() -> None:
    model = _model("olmoe")
    _, recording = _recorded(model)
    seen: list[int] = []
    with resumed(model, recording, 2), capture(find_moe(model), sink=lambda layer, *_: seen.append(layer)):
        _logits(model)
    assert seen == [2]


def test_recording_comes_before_changes_and_holds_the_last_pass() -> None:
    model = _model("mixtral")
    _, plain = _recorded(model)
    with added(model, [Addition(1, torch.ones(WIDTH), 3.0)]), record_block_inputs(model, [1]) as recording:
        with torch.no_grad():
            model(random_ids(1, 3))
        _logits(model)
    assert sorted(recording.inputs) == [0, 1]
    assert all(torch.equal(recording.inputs[layer], plain.inputs[layer]) for layer in (0, 1))


@pytest.mark.parametrize("layer", [0, 2])
def test_another_batch_is_refused(layer: int) -> None:
    model = _model("mixtral")
    _, recording = _recorded(model)
    with resumed(model, recording, layer, repeats=2), torch.no_grad():
        with pytest.raises(SeawallError, match=r"got 3 rows of 11 tokens; expected 2 times the 3 recorded rows of 11"):
            _logits(model)
        with pytest.raises(SeawallError, match=r"got other tokens; .* ids\.repeat\(repeats, 1\)"):
            model(random_ids(seed=5).repeat_interleave(2, 0), use_cache=False)


def test_a_cache_is_refused() -> None:
    model = _model("mixtral")
    _, recording = _recorded(model)
    with resumed(model, recording, 1), torch.no_grad(), pytest.raises(SeawallError, match=r"expected use_cache=False"):
        model(**{**_padded(), "use_cache": True})


def test_a_layer_that_was_not_recorded_is_named() -> None:
    model = _model("mixtral")
    with record_block_inputs(model, [1]) as recording:
        with pytest.raises(ConfigError, match="start at decoder layer 1; got recorded layers none"):
            with resumed(model, recording, 1):
                pass
        _logits(model)
    with pytest.raises(ConfigError, match="start at decoder layer 2; got recorded layers 0, 1"):
        with resumed(model, recording, 2):
            pass
    with pytest.raises(ConfigError, match="decoder layer 3 does not exist; expected 0 to 2"):
        with record_block_inputs(model, [3]):
            pass


def test_nothing_stays_on_the_model_after_an_error() -> None:
    model = _model("mixtral")
    before, recording = _recorded(model)
    with pytest.raises(RuntimeError, match="stop"), resumed(model, recording, 2):
        raise RuntimeError("stop")
    assert torch.equal(_logits(model), before)
    assert not any(_touched(module) for module in model.modules())


def _touched(module: nn.Module) -> bool:
    state = vars(module)
    return bool(state["_forward_hooks"] or state["_forward_pre_hooks"] or "forward" in state)

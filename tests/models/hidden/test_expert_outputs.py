from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from families import FAMILIES, IMPLEMENTATIONS, NUM_EXPERTS, WIDTH, random_ids, tiny
from planted_refusal import EXPERT, harmful, harmless, refusing_by_expert, refusing_tokenizer
from seawall.data.templating import encode_prompt
from seawall.errors import ConfigError, UnsupportedModelError
from seawall.models.hidden.added_by_expert import ExpertAddition, experts_added
from seawall.models.hidden.expert_outputs import expert_outputs
from seawall.models.hidden.intervene import Addition, added
from seawall.models.hidden.sublayers import decoder_blocks, first_output
from seawall.models.moe.calls import ExpertsCall, call_reader
from seawall.models.moe.capture import capture
from seawall.models.moe.find import MoELayer, MoEModel, find_moe

FORCING_BIAS = 100.0
POSITIONS = (-5, -2, -1)
EXPERTS = (6, 0, 3)


@cache
def _moe(family: str, implementation: str = "grouped_mm") -> MoEModel:
    return find_moe(tiny(family, implementation=implementation))


def _alone(moe: MoEModel, experts: dict[int, tuple[int, ...]]) -> dict[tuple[int, int], Tensor]:
    """(MoE layer, expert) -> block outputs (B, P, D), all from one pass."""
    found: dict[tuple[int, int], Tensor] = {}

    def sink(layer: int, some: tuple[int, ...], outputs_XBPD: Tensor) -> None:
        found.update({(layer, expert): output for expert, output in zip(some, outputs_XBPD, strict=True)})

    with torch.no_grad(), expert_outputs(moe, experts, positions=POSITIONS, sink=sink):
        moe.model(random_ids())
    return found


def _block(moe: MoEModel, layer: MoELayer) -> nn.Module:
    return decoder_blocks(moe.model)[layer.decoder_layer].mlp


@contextmanager
def _really_biased(layer: MoELayer, expert: int, tokens_ND: Tensor) -> Iterator[None]:
    """The router's own matrix changed so that these tokens' logits are biased: `W + bias u`, where u . token = 1."""
    weight_ED = next(parameter for parameter in layer.router.parameters() if parameter.ndim == 2)
    u_D = torch.linalg.lstsq(tokens_ND.double(), torch.ones(len(tokens_ND), 1, dtype=torch.float64)).solution[:, 0]
    bias_E = torch.full((NUM_EXPERTS,), -FORCING_BIAS, dtype=torch.float64)
    bias_E[expert] = FORCING_BIAS
    before = weight_ED.detach().clone()
    weight_ED.data += torch.outer(bias_E, u_D).to(weight_ED.dtype)
    yield
    weight_ED.data = before


def _biased_output(moe: MoEModel, layer: MoELayer, expert: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the experts give at the positions in a run with a really biased router, whom they are, and their weights."""
    calls: list[ExpertsCall] = []
    outputs: list[Tensor] = []
    read = call_reader(layer.experts)

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.append(read(args, kwargs))
        outputs.append(output)

    rows, length = random_ids().shape
    places = (torch.arange(rows)[:, None] * length + torch.tensor(POSITIONS) % length).flatten()
    handle = layer.experts.register_forward_hook(hook, with_kwargs=True)
    with torch.no_grad():
        moe.model(random_ids())
        with _really_biased(layer, expert, calls[0].hidden_TD[places]):
            moe.model(random_ids())
    handle.remove()
    assert torch.equal(calls[0].hidden_TD, calls[1].hidden_TD)
    shape = rows, len(POSITIONS), -1
    routed_SD, indices_SK, weights_SK = outputs[1][places], calls[1].indices_TK[places], calls[1].weights_TK[places]
    return routed_SD.view(shape), indices_SK.view(shape), weights_SK.view(shape)


def _cases() -> list[tuple[str, str]]:
    more = [(family, way) for family in ("deepseek_v3", "gpt_oss") for way in IMPLEMENTATIONS[:2]]
    # PhiMoE's second choice keeps its weight under a bias, so no bias leaves one expert alone.
    return [(family, "grouped_mm") for family in FAMILIES if family != "phimoe"] + more


@pytest.mark.parametrize(("family", "implementation"), _cases())
def test_an_expert_alone_is_what_a_router_gives_that_is_really_biased_to_it(family: str, implementation: str) -> None:
    moe = _moe(family, implementation)
    alone = _alone(moe, {0: EXPERTS, 2: (4,)})
    assert list(alone) == [(0, 6), (0, 0), (0, 3), (2, 4)]
    for (layer, expert), output_BPD in alone.items():
        routed_BPD, indices_BPK, weights_BPK = _biased_output(moe, moe.layers[layer], expert)
        weight_BP = (weights_BPK * (indices_BPK == expert)).sum(-1)
        assert (weight_BP > 0.9).all()
        torch.testing.assert_close(output_BPD * weight_BP[..., None], routed_BPD, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(alone[0, 6], alone[0, 0], atol=1e-2)


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3", "glm4_moe", "ernie4_5_moe", "mixtral", "gpt_oss"])
def test_the_shared_part_is_reported_apart_and_is_in_no_expert(family: str) -> None:
    moe = _moe(family)
    layer = moe.layers[1]
    before, shared = _alone(moe, {1: (2,)})[1, 2], list[Tensor]()
    with (
        torch.no_grad(),
        expert_outputs(
            moe, {1: ()}, positions=POSITIONS, sink=lambda *_: None, shared_sink=lambda _, part: shared.append(part)
        ),
    ):
        moe.model(random_ids())
    assert len(shared) == (family not in ("mixtral", "gpt_oss"))
    routed: list[Tensor] = []
    handle = layer.experts.register_forward_hook(lambda module, args, output: routed.append(output))
    with _block_outputs(moe, layer) as whole, torch.no_grad():
        moe.model(random_ids())
    handle.remove()
    if shared:
        expected_BTD = whole[0] - routed[0].view_as(whole[0])
        torch.testing.assert_close(shared[0], expected_BTD[:, list(POSITIONS)], rtol=1e-4, atol=1e-5)
    _scale_shared(moe, layer, 3.0)
    after = _alone(moe, {1: (2,)})[1, 2]
    _scale_shared(moe, layer, 1 / 3)
    assert torch.equal(before, after)


def _scale_shared(moe: MoEModel, layer: MoELayer, factor: float) -> None:
    for name, parameter in _block(moe, layer).named_parameters():
        if "shared_expert" in name:
            parameter.data.mul_(factor)


@contextmanager
def _block_outputs(moe: MoEModel, layer: MoELayer) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    handle = _block(moe, layer).register_forward_hook(lambda block, args, output: seen.append(first_output(output)))
    yield seen
    handle.remove()


def test_all_experts_of_all_layers_come_from_one_pass_in_parts_no_larger_than_it() -> None:
    moe = _moe("qwen3_moe")
    parts: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    passes: list[int] = []

    def sink(layer: int, experts: tuple[int, ...], outputs_XBPD: Tensor) -> None:
        assert outputs_XBPD.shape == (len(experts), 3, len(POSITIONS), WIDTH)
        assert outputs_XBPD[..., 0].numel() <= random_ids().numel()
        assert not outputs_XBPD.requires_grad
        parts[layer].append(experts)

    everyone = {layer: tuple(range(NUM_EXPERTS)) for layer in range(3)}
    handle = moe.model.register_forward_hook(lambda *_: passes.append(1))
    with expert_outputs(moe, everyone, positions=POSITIONS, sink=sink):
        moe.model(random_ids())
    handle.remove()
    assert passes == [1]
    assert {layer: [expert for part in found for expert in part] for layer, found in parts.items()} == {
        layer: list(range(NUM_EXPERTS)) for layer in range(3)
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pass_itself_is_not_changed_and_recordings_see_one_pass(family: str) -> None:
    moe = _moe(family)
    with torch.no_grad():
        before = moe.model(random_ids()).logits
        with capture(moe, logits=True) as trace:
            with expert_outputs(moe, {0: (1,), 1: (2, 5)}, positions=(-1,), sink=lambda *_: None):
                assert torch.equal(moe.model(random_ids()).logits, before)
        assert [len(indices_TK) for indices_TK in trace.indices] == [random_ids().numel()] * moe.num_layers
        assert torch.equal(moe.model(random_ids()).logits, before)


def test_changes_below_are_seen_and_changes_at_the_block_are_not() -> None:
    moe = _moe("mixtral")
    plain = _alone(moe, {1: (3,)})[1, 3]
    vector_D = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    with experts_added(moe, [ExpertAddition(1, (3,), vector_D[None], 50.0)]):
        assert torch.equal(_alone(moe, {1: (3,)})[1, 3], plain)
    with added(moe.model, [Addition(1, vector_D, 5.0)]):
        assert not torch.allclose(_alone(moe, {1: (3,)})[1, 3], plain, atol=1e-2)


def test_half_precision() -> None:
    moe = find_moe(tiny("glm4_moe").to(torch.bfloat16))
    exact = _alone(_moe("glm4_moe"), {0: EXPERTS})
    for key, output_BPD in _alone(moe, {0: EXPERTS}).items():
        assert output_BPD.dtype is torch.bfloat16
        assert (output_BPD.float() - exact[key]).norm() < 0.05 * exact[key].norm()


def test_the_planted_expert_alone_has_a_direction_that_refuses() -> None:
    moe, tokenizer = find_moe(refusing_by_expert()), refusing_tokenizer()
    sums: dict[int, Tensor] = defaultdict(lambda: torch.zeros(64, dtype=torch.float64))
    layer, planted = EXPERT
    for sign, prompts in ((1, harmful(10)), (-1, harmless(10))):

        def sink(at: int, experts: tuple[int, ...], outputs_XBPD: Tensor, sign: int = sign) -> None:
            for expert, output_BPD in zip(experts, outputs_XBPD.double(), strict=True):
                sums[expert] += sign * output_BPD[:, -1].sum(0) / 10

        with torch.no_grad(), expert_outputs(moe, {layer: range(NUM_EXPERTS)}, positions=(-1,), sink=sink):
            for prompt in prompts:
                moe.model(torch.tensor([encode_prompt(tokenizer, prompt)]))
    refuses = {expert: direction_D[2].item() for expert, direction_D in sums.items()}
    assert refuses.pop(planted) > 3
    assert set(refuses.values()) == {0.0}
    suppressing = ExpertAddition(layer, (planted,), sums[planted][None].float(), -2.0)
    ids = [torch.tensor([encode_prompt(tokenizer, prompt)]) for prompt in harmful(10)]
    with torch.no_grad():
        before = {int(moe.model(one).logits[0, -1].argmax()) for one in ids}
        with experts_added(moe, [suppressing]):
            after = {int(moe.model(one).logits[0, -1].argmax()) for one in ids}
    assert (before, after) == ({259}, {260})


@pytest.mark.parametrize(
    ("experts", "positions", "message"),
    [
        ({3: (0,)}, (-1,), "MoE layer 3 does not exist; expected 0 to 2"),
        ({0: (8,)}, (-1,), "expert 8 does not exist; expected 0 to 7"),
        ({0: (0,)}, (-12,), "position -12 lies outside the prompt; got a batch of 11 tokens; expected -11 to 10"),
    ],
)
def test_wrong_places_are_named(experts: dict[int, tuple[int, ...]], positions: tuple[int, ...], message: str) -> None:
    moe = _moe("olmoe")
    with pytest.raises(ConfigError, match=message):
        with expert_outputs(moe, experts, positions=positions, sink=lambda *_: None):
            moe.model(random_ids())
    assert _no_hook_left(moe.model)


def test_experts_that_are_not_what_the_router_chose_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An experts module that reads the index otherwise than by position: one more than it says."""
    moe = _moe("olmoe")
    experts = moe.layers[1].experts
    forward = type(experts).forward

    def shifted(self: Any, hidden: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        moved = (indices + 1) % NUM_EXPERTS if indices.shape[1] == 1 else indices
        output: Tensor = forward(self, hidden, moved, weights)
        return output

    monkeypatch.setattr(type(experts), "forward", shifted)
    with pytest.raises(UnsupportedModelError, match=r"experts of MoE layer 1 called alone are not those"):
        with expert_outputs(moe, {1: (0,)}, positions=(-1,), sink=lambda *_: None):
            moe.model(random_ids())


def _no_hook_left(model: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return not any(vars(module)[kind] for module in model.modules() for kind in kinds)

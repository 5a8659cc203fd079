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
from seawall.models.hidden.forced import FORCING_BIAS, expert_block_outputs
from seawall.models.hidden.intervene import Addition, ExpertAddition, added, experts_added
from seawall.models.hidden.sublayers import decoder_blocks, first_output
from seawall.models.moe.capture import capture
from seawall.models.moe.find import MoELayer, MoEModel, find_moe

POSITIONS = (-5, -2, -1)
EXPERTS = (6, 0, 3)


@cache
def _moe(family: str, implementation: str = "grouped_mm") -> MoEModel:
    return find_moe(tiny(family, implementation=implementation))


def _forced(moe: MoEModel, experts: dict[int, tuple[int, ...]]) -> dict[tuple[int, int], Tensor]:
    """(MoE layer, expert) -> block outputs (B, P, D), all from one pass."""
    found: dict[tuple[int, int], Tensor] = {}

    def sink(layer: int, some: tuple[int, ...], outputs_XBPD: Tensor) -> None:
        found.update({(layer, expert): output for expert, output in zip(some, outputs_XBPD, strict=True)})

    with torch.no_grad(), expert_block_outputs(moe, experts, positions=POSITIONS, sink=sink):
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


def _biased_output(moe: MoEModel, layer: MoELayer, expert: int) -> Tensor:
    """What the block gives at the positions in a run with a really biased router (B, P, D)."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def hook(block: nn.Module, args: Any, output: Any) -> None:
        inputs.append(args[0])
        outputs.append(first_output(output))

    handle = _block(moe, layer).register_forward_hook(hook)
    with torch.no_grad():
        moe.model(random_ids())
        with _really_biased(layer, expert, inputs[0][:, list(POSITIONS)].flatten(0, 1)):
            moe.model(random_ids())
    handle.remove()
    assert torch.equal(inputs[0], inputs[1])
    return outputs[1][:, list(POSITIONS)]


def _cases() -> list[tuple[str, str]]:
    more = [(family, way) for family in ("deepseek_v3", "gpt_oss", "phimoe") for way in IMPLEMENTATIONS[:2]]
    return [(family, "grouped_mm") for family in FAMILIES] + more


@pytest.mark.parametrize(("family", "implementation"), _cases())
def test_a_forced_expert_gives_what_a_really_biased_router_gives(family: str, implementation: str) -> None:
    moe = _moe(family, implementation)
    found = _forced(moe, {0: EXPERTS, 2: (4,)})
    assert list(found) == [(0, 6), (0, 0), (0, 3), (2, 4)]
    for (layer, expert), output_BPD in found.items():
        expected_BPD = _biased_output(moe, moe.layers[layer], expert)
        torch.testing.assert_close(output_BPD, expected_BPD, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found[0, 6], found[0, 0], atol=1e-2)


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3", "glm4_moe", "ernie4_5_moe", "mixtral", "gpt_oss"])
def test_it_is_the_expert_at_full_weight_and_the_shared_part(family: str) -> None:
    moe = _moe(family)
    layer = moe.layers[1]
    scale = {"deepseek_v3": 2.5, "glm4_moe": 1.5}.get(family, 1.0)
    found = _forced(moe, {1: (2,)})[1, 2]
    seen: dict[str, Tensor] = {}

    def experts_hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen["hidden"], seen["routed"] = args[0], output

    def block_hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen["whole"] = first_output(output)

    hooks = layer.experts.register_forward_hook(experts_hook), _block(moe, layer).register_forward_hook(block_hook)
    with torch.no_grad():
        moe.model(random_ids())
        for hook in hooks:
            hook.remove()
        tokens = len(seen["hidden"])
        one_T1 = torch.ones(tokens, 1)
        alone_TD = layer.experts(seen["hidden"], torch.full((tokens, 1), 2), one_T1)
    shared_BTD = seen["whole"] - seen["routed"].view_as(seen["whole"])
    expected_BTD = shared_BTD + scale * alone_TD.view_as(shared_BTD)
    torch.testing.assert_close(found, expected_BTD[:, list(POSITIONS)], rtol=1e-4, atol=1e-5)
    assert (shared_BTD.abs().max() > 1e-2) == (family not in ("mixtral", "gpt_oss"))


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
    with expert_block_outputs(moe, everyone, positions=POSITIONS, sink=sink):
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
            with expert_block_outputs(moe, {0: (1,), 1: (2, 5)}, positions=(-1,), sink=lambda *_: None):
                assert torch.equal(moe.model(random_ids()).logits, before)
        assert [len(indices_TK) for indices_TK in trace.indices] == [random_ids().numel()] * moe.num_layers
        assert torch.equal(moe.model(random_ids()).logits, before)


def test_changes_below_are_seen_and_changes_at_the_block_are_not() -> None:
    moe = _moe("mixtral")
    plain = _forced(moe, {1: (3,)})[1, 3]
    vector_D = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    with experts_added(moe, [ExpertAddition(1, (3,), vector_D[None], 50.0)]):
        assert torch.equal(_forced(moe, {1: (3,)})[1, 3], plain)
    with added(moe.model, [Addition(1, vector_D, 5.0)]):
        assert not torch.allclose(_forced(moe, {1: (3,)})[1, 3], plain, atol=1e-2)


def test_half_precision() -> None:
    moe = find_moe(tiny("glm4_moe").to(torch.bfloat16))
    exact = _forced(_moe("glm4_moe"), {0: EXPERTS})
    for key, output_BPD in _forced(moe, {0: EXPERTS}).items():
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

        with torch.no_grad(), expert_block_outputs(moe, {layer: range(NUM_EXPERTS)}, positions=(-1,), sink=sink):
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
        with expert_block_outputs(moe, experts, positions=positions, sink=lambda *_: None):
            moe.model(random_ids())
    assert _no_hook_left(moe.model)


def test_a_router_that_makes_its_logits_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    moe = _moe("olmoe")
    router = moe.layers[1].router
    monkeypatch.setattr(type(router), "forward", lambda self, hidden: _by_matmul(self, hidden))
    with pytest.raises(UnsupportedModelError, match=r"router of MoE layer 1 .* cannot be forced; got 0 products"):
        with expert_block_outputs(moe, {1: (0,)}, positions=(-1,), sink=lambda *_: None):
            moe.model(random_ids())


def _by_matmul(router: Any, hidden_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logits_TE = hidden_TD @ router.weight.T
    weights_TK, indices_TK = logits_TE.softmax(-1).topk(2)
    return logits_TE, weights_TK, indices_TK


def _no_hook_left(model: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return not any(vars(module)[kind] for module in model.modules() for kind in kinds)

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dense import DENSE, dense
from families import FAMILIES, IMPLEMENTATIONS, NUM_EXPERTS, WIDTH, random_ids, tiny, tiny_tokenizer
from seawall.data.types import user
from seawall.errors import ConfigError, SeawallError, UnsupportedModelError
from seawall.models.generate import generate
from seawall.models.hidden.added_by_expert import ExpertAddition, experts_added
from seawall.models.hidden.intervene import SITES, Addition, Site, ablated, added
from seawall.models.hidden.residual import capture_residual
from seawall.models.hidden.sublayers import Block, decoder_blocks, first_output
from seawall.models.moe.capture import capture
from seawall.models.moe.find import MoEModel, find_moe

ALL = [*FAMILIES, *DENSE]
SIGMOID = ("deepseek_v3", "glm4_moe", "minimax_m2")
"""Families whose gate weights are sigmoids of the logits; a bias and groups decide the choice."""


@cache
def _model(family: str) -> PreTrainedModel:
    """Built once: a change that stays on it would fail the tests that come after."""
    return dense(family) if family in DENSE else tiny(family)


def _logits(model: PreTrainedModel, ids: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(random_ids() if ids is None else ids, use_cache=False).logits
    return logits


def _vector(seed: int = 0, *shape: int) -> Tensor:
    return torch.randn(*(shape or (WIDTH,)), generator=torch.Generator().manual_seed(seed))


def _no_hook_left(model: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return not any(vars(module)[kind] for module in model.modules() for kind in kinds)


def _last_module(block: Block, site: Site) -> nn.Module:
    """The module whose output goes into the residual stream, by the names that these families use."""
    names = (
        ("post_self_attn_layernorm", "post_attention_layernorm"),
        ("post_mlp_layernorm", "post_feedforward_layernorm"),
    )
    children = dict(block.block.named_children())
    if not children.keys() & set(names[1]):
        return block.attention if site == "attention" else block.mlp
    return next(children[name] for name in names[site == "mlp"] if name in children)


@contextmanager
def _written(model: PreTrainedModel) -> Iterator[dict[tuple[int, Site], Tensor]]:
    """What every site of every layer holds, as seen after all other hooks."""
    found: dict[tuple[int, Site], Tensor] = {}
    handles = []
    for block in decoder_blocks(model):
        for site in SITES[1:]:

            def hook(module: Any, inputs: Any, output: Any, key: tuple[int, Site] = (block.index, site)) -> None:
                found[key] = first_output(output).detach()

            handles.append(_last_module(block, site).register_forward_hook(hook))
    with capture_residual(model) as trace:
        yield found
    found.update({(layer, "residual"): hidden for layer, hidden in trace.inputs.items()})
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("family", ALL)
def test_an_addition_at_the_residual_stream_is_an_addition_by_hand(family: str) -> None:
    model, vector_D = _model(family), _vector()
    with torch.no_grad(), capture_residual(model) as plain:
        model(random_ids())

    def by_hand(block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0] - 2.5 * vector_D, *args[1:])

    handle = decoder_blocks(model)[1].block.register_forward_pre_hook(by_hand)
    expected = _logits(model)
    handle.remove()
    with added(model, [Addition(1, vector_D, -2.5)]), capture_residual(model) as trace:
        assert torch.equal(_logits(model), expected)
    assert torch.equal(trace.inputs[0], plain.inputs[0])
    torch.testing.assert_close(trace.inputs[1], plain.inputs[1] - 2.5 * vector_D)
    assert not torch.equal(_logits(model), expected)


@pytest.mark.parametrize("site", SITES[1:])
@pytest.mark.parametrize("family", ALL)
def test_an_addition_at_a_half_shifts_what_it_writes_to_the_stream(family: str, site: Site) -> None:
    model, vector_D = _model(family), _vector()
    with _written(model) as plain:
        _logits(model)
    with added(model, [Addition(1, vector_D, 3.0, site)]), _written(model) as moved:
        _logits(model)
    torch.testing.assert_close(moved[1, site], plain[1, site] + 3.0 * vector_D)
    shift = moved[2, "residual"] - plain[2, "residual"]
    if site == "mlp":
        torch.testing.assert_close(shift, (3.0 * vector_D).expand_as(shift), rtol=1e-4, atol=1e-4)
    assert shift.abs().max() > 0.1


@pytest.mark.parametrize("family", ALL)
def test_nothing_is_left_along_an_ablated_direction(family: str) -> None:
    model, direction_D = _model(family), _vector()
    before = _logits(model)
    unit_D = direction_D / direction_D.norm()
    with _written(model) as plain:
        _logits(model)
    with ablated(model, 7 * direction_D), _written(model) as clean:
        ablated_logits = _logits(model)
    assert clean.keys() == {(block.index, site) for block in decoder_blocks(model) for site in SITES}
    for key, hidden_BTD in clean.items():
        assert ((hidden_BTD @ unit_D).abs() <= 1e-5 * hidden_BTD.norm(dim=-1)).all(), key
        assert (plain[key] @ unit_D).abs().max() > 1e-3 * plain[key].norm(dim=-1).max(), key
    assert not torch.allclose(ablated_logits, before)
    assert torch.equal(_logits(model), before)


@pytest.mark.parametrize("sites", [("residual",), ("attention",), ("attention", "mlp")])
def test_only_the_sites_and_layers_asked_for_are_ablated(sites: tuple[Site, ...]) -> None:
    model, unit_D = _model("olmoe"), nn.functional.normalize(_vector(), dim=0)
    with _written(model) as plain:
        _logits(model)
    with ablated(model, unit_D, layers=[1], sites=sites), _written(model) as clean:
        _logits(model)
    for (layer, site), hidden_BTD in clean.items():
        gone = bool(((hidden_BTD @ unit_D).abs() <= 1e-5 * hidden_BTD.norm(dim=-1)).all())
        assert gone == (layer == 1 and site in sites), (layer, site)
    assert all(torch.equal(clean[0, site], plain[0, site]) for site in SITES)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "gemma3_text"])
def test_a_coefficient_of_zero_changes_no_bit(family: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = copy.deepcopy(_model(family)).to(dtype)
        before = _logits(model)
        zeros = [Addition(layer, _vector(layer), 0.0, site) for layer in (0, 2) for site in SITES]
        with added(model, zeros), added(model, [Addition(1, _vector(), torch.zeros(3))]):
            assert torch.equal(_logits(model), before)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", ALL)
def test_one_coefficient_per_row_is_one_run_for_each(family: str, site: Site) -> None:
    model, coefficients = _model(family), torch.tensor([0.0, -4.0, 1.5])
    with added(model, [Addition(1, _vector(), coefficients, site)]):
        together = _logits(model)
    for row, coefficient in enumerate(coefficients.tolist()):
        with added(model, [Addition(1, _vector(), coefficient, site)]):
            torch.testing.assert_close(together[row], _logits(model)[row], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together[0], _logits(model)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["mixtral", "gemma2", "olmo2"])
def test_changes_at_one_place_follow_each_other(family: str) -> None:
    model, unit_D = _model(family), nn.functional.normalize(_vector(), dim=0)
    with added(model, [Addition(1, _vector(1), 2.0, "mlp")]), ablated(model, unit_D), _written(model) as clean:
        _logits(model)
    assert ((clean[1, "mlp"] @ unit_D).abs() <= 1e-5 * clean[1, "mlp"].norm(dim=-1)).all()
    with ablated(model, unit_D), added(model, [Addition(1, unit_D, 2.0, "mlp")]), _written(model) as shifted:
        _logits(model)
    torch.testing.assert_close(shifted[1, "mlp"] @ unit_D, torch.full((3, 11), 2.0), rtol=1e-4, atol=1e-4)


def _expert_shift(family_moe: MoEModel, ids: Tensor, addition: ExpertAddition) -> Tensor:
    """The shift of the block's output by its formula, from recorded routing, one token and expert at a time."""
    with torch.no_grad(), capture(family_moe, logits=True) as trace:
        family_moe.model(ids)
    logits_TE, indices_TK = trace.logits[addition.layer].double(), trace.indices[addition.layer]
    weights_TK = trace.weights[addition.layer].double()
    family = family_moe.model.config.model_type
    rows = []
    for logits_E, chosen, weights_K in zip(logits_TE, indices_TK.tolist(), weights_TK, strict=True):
        share_E = logits_E.exp() / logits_E.exp().sum()
        if family in SIGMOID:
            share_E = logits_E.sigmoid() * weights_K.sum() / logits_E.sigmoid()[chosen].sum()
        if family == "phimoe":
            share_E = torch.zeros_like(logits_E).index_add(0, torch.tensor(chosen), weights_K)
        row_D = torch.zeros(WIDTH, dtype=torch.float64)
        for expert, vector_D in zip(addition.experts, addition.vectors_XD, strict=True):
            if expert in chosen or not addition.top_k_only:
                row_D += share_E[expert] * vector_D
        rows.append(row_D)
    return torch.stack(rows).view(*ids.shape, WIDTH)


@pytest.mark.parametrize("top_k_only", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_expert_addition_is_the_formula(family: str, top_k_only: bool) -> None:
    _check_formula(find_moe(_model(family)), top_k_only=top_k_only)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[:2])
@pytest.mark.parametrize("family", ["gpt_oss", "deepseek_v3"])
def test_an_expert_addition_is_the_formula_however_the_experts_are_computed(family: str, implementation: str) -> None:
    _check_formula(find_moe(tiny(family, implementation=implementation)), top_k_only=True)


def _check_formula(moe: MoEModel, *, top_k_only: bool) -> None:
    ids = random_ids()
    addition = ExpertAddition(1, (5, 2), _vector(3, 2, WIDTH), -30.0, top_k_only)
    layer = moe.layers[1].decoder_layer
    with _written(moe.model) as plain:
        _logits(moe.model)
    with experts_added(moe, [addition]), _written(moe.model) as moved:
        _logits(moe.model)
    shift = (moved[layer, "mlp"] - plain[layer, "mlp"]).double()
    expected = -30.0 * _expert_shift(moe, ids, addition)
    torch.testing.assert_close(shift, expected, rtol=1e-3, atol=1e-3)
    untouched = (expected == 0).all(-1)
    assert untouched.any() == (top_k_only or moe.model.config.model_type == "phimoe")
    assert (shift[untouched] == 0).all()


@pytest.mark.parametrize("experts_first", [True, False])
def test_experts_are_added_before_what_is_done_to_the_whole_output(experts_first: bool) -> None:
    moe, unit_D = find_moe(_model("mixtral")), nn.functional.normalize(_vector(), dim=0)
    experts = experts_added(moe, [ExpertAddition(1, (3,), 50 * unit_D[None])])
    whole = ablated(moe.model, unit_D, layers=[1], sites=["mlp"])
    with experts if experts_first else whole, whole if experts_first else experts, _written(moe.model) as clean:
        _logits(moe.model)
    assert ((clean[1, "mlp"] @ unit_D).abs() <= 1e-5 * clean[1, "mlp"].norm(dim=-1)).all()


def test_expert_additions_of_several_experts_and_rows() -> None:
    moe, coefficients = find_moe(_model("deepseek_v3")), torch.tensor([1.0, -50.0, 0.0])
    vectors = _vector(1, NUM_EXPERTS, WIDTH)
    whole = ExpertAddition(2, tuple(range(NUM_EXPERTS)), vectors, coefficients)
    one_by_one = [ExpertAddition(2, (e,), vectors[e : e + 1], coefficients) for e in range(NUM_EXPERTS)]
    with experts_added(moe, [whole]):
        together = _logits(moe.model)
    with experts_added(moe, one_by_one):
        torch.testing.assert_close(_logits(moe.model), together, rtol=1e-3, atol=1e-4)
    plain = _logits(moe.model)
    torch.testing.assert_close(together[2], plain[2], rtol=1e-5, atol=1e-5)
    assert (together[1] - plain[1]).abs().max() > 0.1
    with experts_added(moe, [ExpertAddition(2, (1,), vectors[:1], 0.0)]):
        assert torch.equal(_logits(moe.model), plain)


@pytest.mark.parametrize("family", ["mixtral", "glm4_moe", "gpt_oss", "llama"])
def test_they_compose_with_generation_and_capture(family: str) -> None:
    """Token by token with a cache gives what whole forward passes give."""
    model, tokenizer = _model(family), tiny_tokenizer()
    prompts = [user("abc"), user("quite a bit longer")]
    with _all_of_them(model):
        replies = generate(model, tokenizer, prompts, max_new_tokens=5, batch_size=2)
        for reply in replies:
            ids = list(reply.prompt_ids)
            for token in reply.token_ids:
                assert int(_logits(model, torch.tensor([ids]))[0, -1].argmax()) == token
                ids.append(token)
    assert _no_hook_left(model)
    plain = generate(model, tokenizer, prompts, max_new_tokens=5, batch_size=2)
    assert [reply.token_ids for reply in plain] != [reply.token_ids for reply in replies]


@contextmanager
def _all_of_them(model: PreTrainedModel) -> Iterator[None]:
    with added(model, [Addition(1, _vector(), 2.0), Addition(2, _vector(1), 2.0, "attention")]):
        with ablated(model, _vector(2), layers=[2]):
            if type(model).__name__.startswith("Llama"):
                yield
                return
            moe = find_moe(model)
            addition = ExpertAddition(1, (0, 3), _vector(4, 2, WIDTH), 10.0, top_k_only=True)
            with capture(moe, logits=True) as trace, experts_added(moe, [addition]):
                yield
            assert [len(indices_TK) for indices_TK in trace.indices] == [len(trace.indices[0])] * moe.num_layers


@pytest.mark.parametrize("family", ["qwen2_moe", "phimoe", "gemma3_text"])
def test_a_coefficient_that_makes_nan_shows_in_its_row_alone(family: str) -> None:
    model = _model(family)
    before = _logits(model)
    with added(model, [Addition(1, _vector(), torch.tensor([0.0, float("inf"), 0.0]))]):
        logits = _logits(model)
    assert torch.isfinite(logits).all(-1).all(-1).tolist() == [True, False, True]
    torch.testing.assert_close(logits[[0, 2]], before[[0, 2]])


def _interventions(model: PreTrainedModel) -> list[AbstractContextManager[None]]:
    moe = find_moe(model)
    per_row = torch.ones(3)
    vectors = _vector(1, 1, WIDTH)
    return [
        added(model, [Addition(1, _vector(), per_row, site) for site in SITES]),
        ablated(model, _vector()),
        experts_added(moe, [ExpertAddition(1, (4,), vectors, per_row, top_k_only=True)]),
    ]


@pytest.mark.parametrize("which", range(3))
def test_nothing_stays_on_the_model_after_an_error(which: int) -> None:
    model = _model("minimax_m2")
    before = _logits(model)
    with pytest.raises(IndexError), _interventions(model)[which]:
        model(torch.full((3, 2), 10_000))
    assert _no_hook_left(model)
    assert torch.equal(_logits(model), before)


@pytest.mark.parametrize("which", [0, 2])
def test_coefficients_per_row_are_refused_for_another_batch_and_while_generating(which: int) -> None:
    model = _model("olmoe")
    generate(
        model, tiny_tokenizer(), [user("a"), user("b")], max_new_tokens=3, batch_size=3
    )  # compares rows with a batch, once
    with _interventions(model)[which], pytest.raises(SeawallError, match=r"got coefficients \(3,\) for 2 rows"):
        _logits(model, random_ids(2))
    with (
        _interventions(model)[which],
        pytest.raises(SeawallError, match=r"expected single forward passes.*one number"),
    ):
        generate(model, tiny_tokenizer(), [user(text) for text in "abc"], max_new_tokens=3, batch_size=3)
    assert _no_hook_left(model)


def _wrong(model: PreTrainedModel) -> dict[str, AbstractContextManager[None]]:
    moe = find_moe(model)
    one = _vector(0, 1, WIDTH)
    return {
        "decoder layer 3 does not exist; expected 0 to 2": added(model, [Addition(3, _vector())]),
        "decoder layer -1 does not exist": ablated(model, _vector(), layers=[-1]),
        r"got shape \(5,\); expected \(32,\), the model's width": added(model, [Addition(0, torch.ones(5))]),
        "length; got 0; expected above 0": ablated(model, torch.zeros(WIDTH)),
        "length; got nan": ablated(model, torch.full((WIDTH,), float("nan"))),
        "MoE layer 3 does not exist; expected 0 to 2": experts_added(moe, [ExpertAddition(3, (0,), one)]),
        "expert 8 does not exist; expected 0 to 7": experts_added(moe, [ExpertAddition(0, (8,), one)]),
        r"named twice; got experts \[1, 1\]": experts_added(moe, [ExpertAddition(0, (1, 1), one.expand(2, WIDTH))]),
        r"got shape \(1, 32\); expected 2 rows": experts_added(moe, [ExpertAddition(0, (1, 2), one)]),
        r"got shape \(4,\); expected \(32,\)": experts_added(moe, [ExpertAddition(0, (1,), one[:, :4])]),
    }


@pytest.mark.parametrize("case", range(10))
def test_wrong_places_and_directions_are_named(case: int) -> None:
    model = _model("olmoe")
    message, intervention = list(_wrong(model).items())[case]
    with pytest.raises(ConfigError, match=message), intervention:
        pass
    assert _no_hook_left(model)


@pytest.mark.parametrize(("family", "got"), [("nemotron_h", "attention none; MLP mixer"), ("gemma4_text", "MLP mlp, ")])
def test_layers_that_are_not_attention_and_mlp_are_refused(family: str, got: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"halves of decoder layer 0 .*; got .*{got}"):
        decoder_blocks(tiny(family))


@pytest.mark.parametrize("family", ALL)
def test_the_halves_of_each_layer_are_what_their_classes_say(family: str) -> None:
    model = _model(family)
    blocks = decoder_blocks(model)
    assert [block.index for block in blocks] == list(range(model.config.num_hidden_layers))
    for block in blocks:
        assert "Attention" in type(block.attention).__name__
        assert any(word in type(block.mlp).__name__.lower() for word in ("mlp", "moe"))
    if family in FAMILIES:
        for layer in find_moe(model).layers:
            assert blocks[layer.decoder_layer].mlp is model.get_submodule(layer.experts_name.rpartition(".")[0])

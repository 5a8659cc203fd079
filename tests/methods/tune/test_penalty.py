"""The factored penalty is the formula's, in value and gradient, for every kind of update that it takes."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from anchors import anchor_of, dense, matrix_of, random_anchor
from families import tiny
from places import SHARED
from seawall.errors import ConfigError, SeawallError, UnsupportedModelError
from seawall.methods.tune.penalty import (
    PROJECTORS,
    Penalty,
    Projection,
    Projector,
    full_penalty,
    low_rank_penalty,
    penalised,
)
from seawall.models.files.stream import matrices
from seawall.models.lora.updates import FullUpdate, LowRankUpdate, trainable_updates

ORACLE = SHARED / "oracle" / "asft.json"
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
peft = pytest.importorskip("peft")


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def projection_of(V: Tensor, projector: Projector, *, rank: int | None = None, seed: int = 0) -> Projection:
    return PROJECTORS[projector](matrix_of(V, rank=rank), torch.Generator().manual_seed(seed))


@pytest.mark.skipif(not ORACLE.exists(), reason="shared/oracle is not beside this checkout")
def test_reference_matches_the_oracle_in_value_and_gradient() -> None:
    cases = json.loads(ORACLE.read_text())["cases"]
    assert len(cases) == 3
    for case in cases:
        V, A, B = (torch.tensor(case[key]) for key in ("V", "lora_A", "lora_B"))
        A.requires_grad_()
        B.requires_grad_()
        value = case["lambda_reg"] * low_rank_penalty(projection_of(V, "reference"), B, A)
        torch.autograd.backward(value)
        torch.testing.assert_close(value.detach(), torch.tensor(case["penalty"]), rtol=1e-4, atol=0)
        torch.testing.assert_close(A.grad, torch.tensor(case["grad_A"]), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(B.grad, torch.tensor(case["grad_B"]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stack", [(), (3,)])
@pytest.mark.parametrize("projector", get_args(Projector))
def test_the_factored_form_is_the_dense_one(projector: Projector, stack: tuple[int, ...]) -> None:
    V, B, A = _random(*stack, 12, 9), _random(*stack, 12, 4, seed=1), _random(*stack, 4, 9, seed=2)
    projection = projection_of(V, projector, rank=5)
    U, c = projection.basis.double(), projection.shares.double()
    sides = [side.double().requires_grad_() for side in (B, A)]
    outside = (torch.eye(12, dtype=torch.float64) - U @ torch.diag_embed(c) @ U.mT) @ sides[0] @ sides[1]
    torch.autograd.backward(outside.square().sum())
    factors = [side.clone().requires_grad_() for side in (B, A)]
    value = low_rank_penalty(projection, *factors)
    torch.autograd.backward(value)
    torch.testing.assert_close(value.detach().double(), outside.detach().square().sum(), rtol=1e-5, atol=0)
    for ours, theirs in zip(factors, sides, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(12, 12), (16, 8), (8, 20)])
def test_reference_is_the_authors_formula(shape: tuple[int, int]) -> None:
    V = _random(*shape)
    B, A = _random(shape[0], 4, seed=1), _random(4, shape[1], seed=2)
    C = V @ V.mT / V.square().sum().sqrt()
    expected = (B @ A - C @ B @ A).square().sum()
    torch.testing.assert_close(low_rank_penalty(projection_of(V, "reference"), B, A), expected, rtol=1e-4, atol=0)


def test_projectors() -> None:
    assert set(PROJECTORS) == set(get_args(Projector))
    V = _random(12, 9)
    B, A = _random(12, 4, seed=1), _random(4, 9, seed=2)
    whole = (B @ A).square().sum()
    torch.testing.assert_close(low_rank_penalty(projection_of(V, "l2", rank=5), B, A), whole)
    within = V @ _random(9, 4, seed=3)
    assert low_rank_penalty(projection_of(V, "subspace"), within, A) < 1e-9 * (within @ A).square().sum()
    drawn = [projection_of(V, "random", rank=5, seed=seed) for seed in (0, 0, 1)]
    torch.testing.assert_close(drawn[0].basis.mT @ drawn[0].basis, torch.eye(5), rtol=0, atol=1e-5)
    assert torch.equal(drawn[0].basis, drawn[1].basis)
    assert not torch.equal(drawn[0].basis, drawn[2].basis)
    values = [float(low_rank_penalty(projection_of(V, one, rank=5), B, A)) for one in ("random", "subspace", "l2")]
    assert len({round(value, 3) for value in values}) == 3
    assert max(values) == values[2]


def test_a_matrix_that_alignment_never_moved_is_penalised_whole() -> None:
    B, A = _random(12, 4, seed=1), _random(4, 9, seed=2)
    for projector in get_args(Projector):
        unmoved = PROJECTORS[projector](matrix_of(torch.zeros(12, 9)), torch.Generator())
        torch.testing.assert_close(low_rank_penalty(unmoved, B, A), (B @ A).square().sum())


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_factors_lose_no_digits_of_the_penalty(autocast: bool) -> None:
    """Almost within the directions: there a difference of Gram matrices, or bfloat16 products, would be noise."""
    V = _random(64, 48)
    B = (V @ _random(48, 4, seed=1) + 0.02 * _random(64, 4, seed=3)).bfloat16()
    A = _random(4, 48, seed=2).bfloat16()
    matrix = matrix_of(V, rank=40)
    expected = dense(matrix, B.double() @ A.double())
    B.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = low_rank_penalty(projection_of(V, "subspace", rank=40), B, A)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=0)
    torch.autograd.backward(value)
    assert B.grad is not None
    assert B.grad.dtype == torch.bfloat16
    assert B.grad.isfinite().all()


def adapted(family: str, **settings: Any) -> Any:
    torch.manual_seed(3)
    config = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, **settings)
    return peft.get_peft_model(tiny(family), config)


def test_lora_of_linear_layers() -> None:
    model = adapted("llama", target_modules=["q_proj", "v_proj"])
    anchor = random_anchor(matrices(tiny("llama")))
    updates = penalised(anchor, trainable_updates(model))
    assert [one.name for one in updates][:2] == [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.v_proj.weight",
    ]
    assert len(updates) == 6
    layers = [model.get_submodule(f"base_model.model.{one.name.removesuffix('.weight')}") for one in updates]
    changes = [layer.get_delta_weight("default").detach() / 2 for layer in layers]
    expected = torch.stack([dense(anchor.matrices[one.name], dW) for one, dW in zip(updates, changes, strict=True)])
    expected = expected.sum()
    torch.testing.assert_close(Penalty(anchor, updates)().detach().double(), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(
        Penalty(anchor, updates, scaled=True)().detach().double(), 4 * expected, rtol=1e-4, atol=0
    )


def test_names_are_those_of_the_model_without_adapters() -> None:
    """Added by transformers and not by PEFT; modules that PEFT trains in full; a second adapter that is at rest."""
    anchor = random_anchor(matrices(tiny("llama")))
    plain = tiny("llama")
    plain.add_adapter(peft.LoraConfig(r=4, target_modules=["q_proj"]))
    assert [one.name for one in penalised(anchor, trainable_updates(plain))] == [
        f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(3)
    ]
    beside = adapted("llama", target_modules=["q_proj"], modules_to_save=["o_proj", "lm_head"])
    beside.add_adapter("other", peft.LoraConfig(r=2, target_modules=["q_proj"]))
    updates = trainable_updates(beside)
    assert {one.name for one in updates if isinstance(one, LowRankUpdate)} == {
        f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(3)
    }
    whole = {one.name for one in updates if isinstance(one, FullUpdate)}
    assert whole == {f"model.layers.{layer}.self_attn.o_proj.weight" for layer in range(3)} | {"lm_head.weight"}
    assert len(penalised(anchor, updates)) == 6


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_lora_of_experts(family: str) -> None:
    """Stacks stored as (E, rows, columns) and as (E, columns, rows); PEFT's own product says what the update is."""
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    model = adapted(family, target_modules=["q_proj"], target_parameters=targets)
    anchor = random_anchor(matrices(tiny(family)))
    updates = penalised(anchor, trainable_updates(model))
    assert len(updates) == 3 * 3
    for one in updates:
        assert isinstance(one, LowRankUpdate)
        assert one.scaling == 2.0
        dW = one._module.get_delta_weight("default").detach() / 2
        dW = dW.mT if anchor.matrices[one.name].transposed and dW.ndim == 3 else dW
        value = Penalty(anchor, [one])().detach().double()
        torch.testing.assert_close(value, dense(anchor.matrices[one.name], dW), rtol=1e-4, atol=0)
    value = Penalty(anchor, updates)()
    torch.autograd.backward(value)
    lora = {name: one for name, one in model.named_parameters() if one.requires_grad}
    assert len(lora) == 2 * len(updates)
    assert all(one.grad is not None and one.grad.abs().max() > 0 for one in lora.values())


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_training_whole_matrices(family: str) -> None:
    model = tiny(family)
    anchor = random_anchor(matrices(model))
    start = {name: model.get_parameter(name).detach().clone() for name in anchor.matrices}
    updates = penalised(anchor, trainable_updates(model))
    assert {one.name for one in updates} == anchor.matrices.keys()
    with torch.no_grad():
        for one in updates:
            assert isinstance(one, FullUpdate)
            one.parameter.add_(0.1 * torch.randn_like(one.parameter))
    value = Penalty(anchor, updates, start=start.__getitem__)()
    torch.autograd.backward(value)
    expected = torch.zeros((), dtype=torch.float64)
    for name, matrix in anchor.matrices.items():
        weight = model.get_parameter(name)
        dW = (weight.detach() - start[name]).double().requires_grad_()
        expected = expected + dense(matrix, dW.mT if matrix.transposed else dW)
        gradient = torch.autograd.grad(dense(matrix, dW.mT if matrix.transposed else dW), dW)[0]
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad.double(), gradient, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(value.detach().double(), expected.detach(), rtol=1e-4, atol=0)


def test_autograd_keeps_no_difference_of_full_matrices() -> None:
    weight = nn.Parameter(_random(64, 48))
    module = nn.Module()
    module.weight = weight
    anchor = anchor_of({"weight": matrix_of(_random(64, 48, seed=1), rank=4)})
    penalty = Penalty(anchor, [FullUpdate("weight", module, "weight")], start=lambda name: torch.zeros(64, 48))
    kept: list[int] = []

    def note(one: Tensor) -> Tensor:
        kept.append(one.numel())
        return one

    with torch.autograd.graph.saved_tensors_hooks(note, lambda one: one):
        value = penalty()
    assert sum(size for size in kept if size >= weight.numel()) <= weight.numel()
    torch.testing.assert_close(
        value, full_penalty(projection_of(_random(64, 48, seed=1), "subspace", rank=4), weight, torch.zeros(64, 48))
    )


def refused(error: type[SeawallError], saying: str, model: nn.Module, targets: tuple[str, ...] = ("q_proj",)) -> None:
    chosen = {name: one for name, one in matrices(tiny("llama")).items() if any(end in name for end in targets)}
    with pytest.raises(error, match=saying) as caught:
        penalised(random_anchor(chosen), trainable_updates(model))
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_refused() -> None:
    both = adapted("llama", target_modules=["q_proj", "v_proj"])
    refused(ConfigError, r"that the anchor lacks; got 3 of 6, model.layers.0.self_attn.v_proj.weight first", both)
    wide = peft.get_peft_model(tiny("llama", hidden_size=64), peft.LoraConfig(target_modules=["q_proj"]))
    refused(
        ConfigError, r"of another model: .*q_proj.weight differs; got \(64, 64\) in the model; exp.*\(32, 32\)", wide
    )
    dora = adapted("llama", target_modules=["q_proj"], use_dora=True)
    refused(UnsupportedModelError, "q_proj .*; got a variant of LoRA", dora)
    other = peft.get_peft_model(tiny("llama"), peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]))
    refused(UnsupportedModelError, "q_proj .*; got 0 trainable", other)
    frozen = tiny("llama").requires_grad_(False)
    refused(ConfigError, "no trained parameter is in the anchor; got 0 trainable parameters", frozen)

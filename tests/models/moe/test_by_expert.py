from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.func import functional_call

from families import FAMILIES, UNUSUAL, checkpoint_activations, random_ids, tiny
from seawall.models.moe import by_expert
from seawall.models.moe.by_expert import computes_sorted, experts_options
from seawall.models.moe.calls import replaced_forward
from seawall.models.moe.capture import capture
from seawall.models.moe.experts import trainable_experts
from seawall.models.moe.find import MoEModel, find_moe
from seawall.models.moe.routers import trainable_routers

SELECTED = ((1, 3), (), (0, 2, 5, 7))
each_family = pytest.mark.parametrize("family", [*FAMILIES, *UNUSUAL])
PLAIN = {"mixtral", "qwen3_moe", "olmoe", "glm4_moe", "deepseek_v3"}
"""Some of the families whose experts have a gate and no bias; `eager` computes the others."""


@pytest.fixture(autouse=True)
def _known_to_transformers() -> None:
    experts_options(by_expert.NAME)


def _both(family: str, dtype: torch.dtype = torch.float32) -> tuple[MoEModel, MoEModel]:
    return find_moe(tiny(family, implementation="eager").to(dtype)), find_moe(
        tiny(family, implementation="sorted").to(dtype)
    )


def test_most_families_are_computed_by_it() -> None:
    sorted_by_us = {
        family
        for family in (*FAMILIES, *UNUSUAL)
        if computes_sorted(find_moe(tiny(family, implementation="sorted")).layers[0].experts)
    }
    assert sorted_by_us >= PLAIN
    assert "gpt_oss" not in sorted_by_us


@each_family
@pytest.mark.parametrize("rows_at_once", [0, 1024], ids=["one by one", "together"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_are_those_of_eager_to_the_bit(
    family: str, rows_at_once: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_expert, "_ROWS_AT_ONCE", rows_at_once)
    eager, ours = _both(family, dtype)
    with torch.no_grad():
        assert torch.equal(ours.model(random_ids()).logits, eager.model(random_ids()).logits)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT calls it
@pytest.mark.parametrize("family", sorted(PLAIN))
@pytest.mark.parametrize("rows_at_once", [0, 1024], ids=["one by one", "together"])
def test_weights_that_stand_in_for_the_parameters_are_the_ones_that_count(
    family: str, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_expert, "_ROWS_AT_ONCE", rows_at_once)
    with torch.no_grad():
        own, other = (moe.model(random_ids()).logits for moe in _both(family))
        substituted = [_substituted(moe) for moe in _both(family)]
        adapted = [_adapted(moe) for moe in _both(family)]
    assert torch.equal(own, other)
    for eager, ours in (substituted, adapted):
        assert torch.equal(ours, eager)
        assert not torch.equal(ours, own)


def _substituted(moe: MoEModel) -> Tensor:
    """Logits with other tensors in the experts' place for one pass, as a replayed routing computes them."""
    names = [layer.full_name(weight) for layer in moe.layers for weight in layer.weights]
    changed = {name: moe.model.state_dict()[name] * 1.5 for name in names}
    logits: Tensor = functional_call(moe.model, changed, (random_ids(),)).logits
    return logits


def _adapted(moe: MoEModel) -> Tensor:
    """Logits with a LoRA adapter of the stacks, which PEFT puts in their place in every pass."""
    stacks = [layer.full_name(weight) for layer in moe.layers for weight in layer.weights]
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=[], target_parameters=stacks, init_lora_weights=False)
    logits: Tensor = get_peft_model(moe.model, config)(random_ids()).logits
    return logits


def _trained(moe: MoEModel, change: Callable[[MoEModel], object]) -> dict[str, Tensor]:
    ids = random_ids()
    change(moe)
    torch.manual_seed(0)  # some routers add noise in training
    with trainable_experts(moe, SELECTED) as copies:
        loss = moe.model(ids, labels=ids).loss
        loss.backward()
        gradients = {name: copy.grad for name, copy in copies.named_parameters() if copy.grad is not None}
    return {"loss": loss.detach(), **gradients}


@each_family
@pytest.mark.parametrize("change", [lambda moe: None, lambda moe: checkpoint_activations(moe.model)], ids=["", "again"])
def test_trained_copies_get_the_gradients_of_eager_to_the_bit(
    family: str, change: Callable[[MoEModel], object]
) -> None:
    eager, ours = (_trained(moe, change) for moe in _both(family))
    assert len(ours) == 1 + len({name for name in eager if name != "loss"})
    assert all(torch.equal(tensor, eager[name]) for name, tensor in ours.items())


def test_trained_copies_in_bfloat16() -> None:
    eager, ours = (_trained(moe, lambda moe: None) for moe in _both("glm4_moe", torch.bfloat16))
    assert all(torch.equal(tensor, eager[name]) for name, tensor in ours.items())


def test_gradients_of_routers_are_those_of_eager() -> None:
    gradients = []
    for moe in _both("glm4_moe"):
        with trainable_routers(moe) as copies:
            moe.model(random_ids(), labels=random_ids()).loss.backward()
            gradients.append([copy.grad for copy in copies.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_copies_that_no_token_uses_have_a_gradient_of_zero() -> None:
    _, moe = _both("glm4_moe")
    ids = random_ids(1, 1)
    with torch.no_grad(), capture(moe) as trace:
        moe.model(ids)
    unused = set(range(moe.num_experts)) - set(trace.indices[2].flatten().tolist())
    with trainable_experts(moe, [(), (), sorted(unused)]) as copies:
        moe.model(ids).logits.sum().backward()
        assert all(copy.grad is not None and not copy.grad.any() for copy in copies.parameters())


def test_a_forward_that_something_else_has_replaced_is_called() -> None:
    _, moe = _both("glm4_moe")
    experts = moe.layers[0].experts
    assert computes_sorted(experts)
    with replaced_forward(experts, experts.forward):
        assert not computes_sorted(experts)

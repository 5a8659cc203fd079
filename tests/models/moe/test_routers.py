from __future__ import annotations

import pytest
import torch
from torch import Tensor

from families import FAMILIES, IMPLEMENTATIONS, NUM_EXPERTS, UNUSUAL, random_ids, tiny
from seawall.models.moe.capture import capture
from seawall.models.moe.experts import trainable_experts
from seawall.models.moe.find import MoEModel, find_moe
from seawall.models.moe.routers import router_parameters, trainable_routers

ODD_NAMES = {
    "hunyuan_v1_moe": {".wg.weight"},
    "gpt_oss": {".weight", ".bias"},
    "gemma4_text": {".proj.weight", ".per_expert_scale"},
}
each_family = pytest.mark.parametrize("family", [*FAMILIES, *UNUSUAL])


def _routing_loss(moe: MoEModel) -> Tensor:
    with capture(moe, logits=True, detach=False) as trace:
        moe.model(random_ids())
    return torch.stack([logits.float().log_softmax(-1)[:, 0].mean() for logits in trace.logits]).sum()


@each_family
def test_the_parameters_are_those_that_make_the_logits(family: str) -> None:
    moe = find_moe(tiny(family))
    parameters = router_parameters(moe)
    kinds = {
        name.removeprefix(layer.router_name) for layer in moe.layers for name in parameters if layer.router_name in name
    }
    assert kinds == ODD_NAMES.get(family, {".weight"})
    assert all(parameter is moe.model.get_parameter(name) for name, parameter in parameters.items())
    assert {len(parameter) for parameter in parameters.values()} == {NUM_EXPERTS}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@each_family
def test_copies_route_as_the_routers_do(family: str, implementation: str, dtype: torch.dtype) -> None:
    moe = find_moe(tiny(family, implementation=implementation).to(dtype))
    with torch.no_grad():
        plain = moe.model(random_ids()).logits
        with trainable_routers(moe):
            assert torch.equal(moe.model(random_ids()).logits, plain)


@each_family
def test_only_routers_change_and_revert_restores_every_bit(family: str) -> None:
    moe = find_moe(tiny(family))
    before = {name: tensor.clone() for name, tensor in moe.model.state_dict().items()}
    with trainable_routers(moe) as copies:
        optimizer = torch.optim.AdamW(copies.parameters(), lr=1e-2, weight_decay=0.1)
        for _ in range(3):
            torch.autograd.backward(_routing_loss(moe))
            assert all(parameter.grad is None for parameter in moe.model.parameters())
            optimizer.step()
            optimizer.zero_grad()
        assert all(torch.equal(tensor, before[name]) for name, tensor in moe.model.state_dict().items())
        with torch.no_grad():
            trained = moe.model(random_ids()).logits
        copies.write_back()
    with torch.no_grad():
        assert torch.equal(moe.model(random_ids()).logits, trained)
    changed = {name for name, tensor in moe.model.state_dict().items() if not torch.equal(tensor, before[name])}
    trainable = set(router_parameters(moe))
    assert trainable == {name for name, _ in copies.named_parameters()}
    # The last layer's scale in Gemma 4 has no part in the logits, so this loss does not move it.
    assert {name for name in trainable if not name.endswith("per_expert_scale")} <= changed <= trainable
    copies.revert()
    assert all(torch.equal(tensor, before[name]) for name, tensor in moe.model.state_dict().items())


def test_gradients_are_those_of_training_the_routers_themselves() -> None:
    for family in FAMILIES:
        moe = find_moe(tiny(family))
        torch.autograd.backward(_routing_loss(moe))
        with trainable_routers(moe) as copies:
            torch.autograd.backward(_routing_loss(moe))
        for name, parameter in router_parameters(moe).items():
            assert parameter.grad is not None
            torch.testing.assert_close(copies.get(name).grad, parameter.grad)


def test_steps_too_small_for_bfloat16_add_up() -> None:
    moe = find_moe(tiny("olmoe").to(torch.bfloat16))
    before = {name: parameter.float() for name, parameter in router_parameters(moe).items()}
    with trainable_routers(moe) as copies:
        for _ in range(100):
            copies.load_state({name: tensor + 1e-6 for name, tensor in copies.state().items()})
        copies.write_back()
        moved = [(copies.get(name) - old).mean().item() for name, old in before.items()]
    assert moved == pytest.approx([1e-4] * len(moved), rel=1e-2)
    large = {name: old.abs() > 0.25 for name, old in before.items()}
    for name, parameter in router_parameters(moe).items():
        assert torch.equal(parameter[large[name]].float(), before[name][large[name]]), (
            "bfloat16 cannot hold these steps"
        )


def _spoil_and_stop(moe: MoEModel, before: Tensor) -> None:
    with trainable_routers(moe) as copies:
        assert not any(parameter.requires_grad for parameter in moe.model.parameters())
        copies.load_state({name: torch.zeros_like(tensor) for name, tensor in copies.state().items()})
        assert not torch.equal(moe.model(random_ids()).logits, before)
        raise RuntimeError("stop")


def test_the_model_is_restored_even_after_an_error() -> None:
    moe = find_moe(tiny("hunyuan_v1_moe"))
    moe.layers[0].experts.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in moe.model.parameters()]
    before = moe.model(random_ids()).logits
    with pytest.raises(RuntimeError, match="stop"):
        _spoil_and_stop(moe, before)
    assert [parameter.requires_grad for parameter in moe.model.parameters()] == flags
    assert not any("forward" in vars(module) for module in moe.model.modules())
    assert torch.equal(moe.model(random_ids()).logits, before)


@each_family
def test_routers_and_experts_can_train_together(family: str) -> None:
    moe = find_moe(tiny(family))
    ids = random_ids()
    with trainable_routers(moe) as routers, trainable_experts(moe, [[0, 1, 2, 3]] * 3) as experts:
        moe.model(ids, labels=ids).loss.backward()
        assert all(parameter.grad is not None for parameter in experts.parameters())
        weights = [parameter for name, parameter in routers.named_parameters() if name.endswith("weight")]
        gradients = [parameter.grad for parameter in weights if parameter.grad is not None]
        assert len(gradients) == 3
        # phimoe's gate saturates: nothing of the language loss may reach one of its routers.
        assert family == "phimoe" or all(gradient.any() for gradient in gradients)
    assert all(parameter.grad is None for parameter in moe.model.parameters())

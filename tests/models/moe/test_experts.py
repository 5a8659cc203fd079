from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from families import FAMILIES, IMPLEMENTATIONS, NUM_EXPERTS, TOP_K, UNUSUAL, checkpoint_activations, random_ids, tiny
from seawall.errors import ArtifactError, SeawallError, UnsupportedModelError
from seawall.models.moe.capture import capture
from seawall.models.moe.experts import TrainableExperts, trainable_experts
from seawall.models.moe.find import MoEModel, find_moe

SELECTED = ((1, 3), (), (0, 2, 5, 7))
each_family = pytest.mark.parametrize("family", [*FAMILIES, *UNUSUAL])
each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def _state(moe: MoEModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in moe.model.state_dict().items()}


def _loss(moe: MoEModel) -> Tensor:
    ids = random_ids()
    loss: Tensor = moe.model(ids, labels=ids).loss
    return loss


def _train(moe: MoEModel, copies: TrainableExperts, steps: int = 4) -> None:
    optimizer = torch.optim.AdamW(copies.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        torch.autograd.backward(_loss(moe))
        optimizer.step()
        optimizer.zero_grad()


@each_implementation
@each_family
def test_splitting_a_subset_off_leaves_the_output(family: str, implementation: str) -> None:
    moe = find_moe(tiny(family, implementation=implementation))
    with torch.no_grad():
        plain = moe.model(random_ids()).logits
        with trainable_experts(moe, SELECTED):
            split = moe.model(random_ids()).logits
    assert (split - plain).abs().max() <= 1e-5


@each_implementation
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_splitting_a_subset_off_leaves_the_output_in_bfloat16(family: str, implementation: str) -> None:
    moe = find_moe(tiny(family, implementation=implementation).to(torch.bfloat16))
    with torch.no_grad():
        plain = moe.model(random_ids()).logits.float()
        with trainable_experts(moe, SELECTED):
            split = moe.model(random_ids()).logits.float()
    # Rounding at other places can turn a token to another expert, so the bound is on the typical difference.
    assert (split - plain).abs().median() <= 0.02 * plain.std()


@each_implementation
@each_family
def test_only_the_selected_experts_change_and_revert_restores_every_bit(family: str, implementation: str) -> None:
    moe = find_moe(tiny(family, implementation=implementation))
    before = _state(moe)
    with trainable_experts(moe, SELECTED) as copies:
        _train(moe, copies)
        assert all(torch.equal(tensor, before[name]) for name, tensor in moe.model.state_dict().items())
        trained = moe.model(random_ids()).logits
        copies.write_back()
    torch.testing.assert_close(moe.model(random_ids()).logits, trained, rtol=0, atol=1e-5)
    stacks = {layer.full_name(name): SELECTED[layer.index] for layer in moe.layers for name in layer.weights}
    for name, tensor in moe.model.state_dict().items():
        selected = stacks.get(name, ())
        rest = [index for index in range(len(tensor)) if index not in selected] if name in stacks else slice(None)
        assert torch.equal(tensor[rest], before[name][rest]), name
        assert all(not torch.equal(tensor[expert], before[name][expert]) for expert in selected), name
    copies.revert()
    assert all(torch.equal(tensor, before[name]) for name, tensor in moe.model.state_dict().items())


def _whole_stack_gradients(moe: MoEModel) -> dict[str, Tensor]:
    moe.model.requires_grad_(False)
    stacks = {layer.full_name(name): layer.parameter(name) for layer in moe.layers for name in layer.weights}
    for parameter in stacks.values():
        parameter.requires_grad_(True)
    torch.autograd.backward(_loss(moe))
    gradients = {}
    for name, parameter in stacks.items():
        assert parameter.grad is not None
        gradients[name] = parameter.grad
        parameter.grad = None
    return gradients


@each_implementation
@each_family
def test_gradients_are_the_slices_of_training_the_whole_stack(family: str, implementation: str) -> None:
    moe = find_moe(tiny(family, implementation=implementation))
    whole = _whole_stack_gradients(moe)
    with trainable_experts(moe, SELECTED) as copies:
        torch.autograd.backward(_loss(moe))
    assert {part.name for part in copies.parts} < whole.keys()
    for part in copies.parts:
        assert part.indices is not None
        gradient = copies.get(part.name).grad
        assert gradient is not None
        torch.testing.assert_close(gradient, whole[part.name][list(part.indices)], rtol=1e-4, atol=1e-6)


@each_implementation
@each_family
def test_gradients_flow_on_to_the_hidden_states(family: str, implementation: str) -> None:
    moe = find_moe(tiny(family, implementation=implementation))
    embedded = moe.model.get_input_embeddings()(random_ids()).detach()

    def gradient() -> Tensor:
        inputs: Tensor = embedded.clone().requires_grad_(True)
        torch.autograd.backward(moe.model(inputs_embeds=inputs).logits.square().mean())
        assert inputs.grad is not None
        return inputs.grad

    plain = gradient()
    with trainable_experts(moe, SELECTED):
        torch.testing.assert_close(gradient(), plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"phimoe"}))
def test_gradient_checkpointing_gives_the_same_gradients(family: str, reentrant: bool) -> None:
    results = []
    for checkpointing in (False, True):
        moe = find_moe(tiny(family))
        if checkpointing:
            checkpoint_activations(moe.model, reentrant=reentrant)
        with trainable_experts(moe, SELECTED) as copies:
            torch.autograd.backward(_loss(moe))
        results.append([parameter.grad for parameter in copies.parameters()])
    for plain, again in zip(*results, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-6)


def test_each_row_is_computed_once() -> None:
    moe = find_moe(tiny("olmoe", implementation="eager"))

    def flops() -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            moe.model(random_ids())
        return int(counter.get_total_flops())

    plain = flops()
    with trainable_experts(moe, SELECTED):
        assert flops() == plain


@each_family
def test_what_trains_is_proportional_to_the_selection(family: str) -> None:
    moe = find_moe(tiny(family))
    whole = sum(layer.parameter(name).numel() for layer in moe.layers for name in layer.weights)
    with trainable_experts(moe, [[0]] * moe.num_layers) as copies:
        assert copies.num_parameters * NUM_EXPERTS == whole
        torch.autograd.backward(_loss(moe))
        assert all(parameter.grad is None for parameter in moe.model.parameters())
        assert all(parameter.grad is not None for parameter in copies.parameters())


@each_implementation
def test_all_experts_and_no_rows_at_all(implementation: str) -> None:
    moe = find_moe(tiny("olmoe", implementation=implementation))
    with torch.no_grad(), capture(moe) as trace:
        plain = moe.model(random_ids(1, 1)).logits
    every = [range(NUM_EXPERTS)] * moe.num_layers
    unused = [[e for e in range(NUM_EXPERTS) if e not in trace.indices[i]] for i in range(moe.num_layers)]
    assert all(len(layer) == NUM_EXPERTS - TOP_K for layer in unused)
    for selected in (every, unused):
        with trainable_experts(moe, selected) as copies:
            logits = moe.model(random_ids(1, 1)).logits
            logits.sum().backward()
        assert (logits - plain).abs().max() <= 1e-5
        gradients = [parameter.grad for parameter in copies.parameters()]
        assert all(gradient is not None for gradient in gradients)
        assert (selected is unused) == all(gradient is not None and not gradient.any() for gradient in gradients)


def test_small_steps_survive_in_a_bfloat16_model() -> None:
    moe = find_moe(tiny("olmoe").to(torch.bfloat16))
    with trainable_experts(moe, [[0]] * moe.num_layers) as copies:
        optimizer = torch.optim.SGD(copies.parameters(), lr=1e-6)
        start = {name: tensor.clone() for name, tensor in copies.state().items()}
        torch.autograd.backward(_loss(moe))
        optimizer.step()
        assert {parameter.dtype for parameter in copies.parameters()} == {torch.float32}
        assert all(not torch.equal(tensor, start[name]) for name, tensor in copies.state().items())
        copies.write_back()
    assert {tensor.dtype for tensor in moe.model.state_dict().values()} == {torch.bfloat16}


def test_write_back_of_untrained_copies_changes_no_bit() -> None:
    moe = find_moe(tiny("gpt_oss").to(torch.bfloat16))
    before = _state(moe)
    with trainable_experts(moe, SELECTED) as copies:
        copies.write_back()
    assert all(torch.equal(tensor, before[name]) for name, tensor in moe.model.state_dict().items())


def test_a_checkpoint_brings_the_copies_back() -> None:
    moe = find_moe(tiny("gpt_oss"))
    with trainable_experts(moe, SELECTED) as copies:
        _train(moe, copies)
        saved = {name: tensor.clone() for name, tensor in copies.state().items()}
        expected = moe.model(random_ids()).logits
    with trainable_experts(moe, SELECTED) as copies:
        copies.load_state(saved)
        assert torch.equal(moe.model(random_ids()).logits, expected)
    with trainable_experts(moe, [[0], [1], [2]]) as others:
        with pytest.raises(ArtifactError, match=r"down_proj; got shape \(2, 16, 32\); expected shape \(1, 16, 32\)"):
            others.load_state(saved)


def _spoil_and_stop(moe: MoEModel, before: Tensor) -> None:
    with trainable_experts(moe, SELECTED) as copies:
        assert not any(parameter.requires_grad for parameter in moe.model.parameters())
        copies.load_state({name: torch.zeros_like(tensor) for name, tensor in copies.state().items()})
        assert not torch.equal(moe.model(random_ids()).logits, before)
        raise RuntimeError("stop")


def test_the_model_is_restored_even_after_an_error() -> None:
    moe = find_moe(tiny("mixtral"))
    layer = moe.layers[0]
    layer.router.requires_grad_(False)

    def placed(*args: object) -> object:
        return type(layer.experts).forward(layer.experts, *args)

    vars(layer.experts)["forward"] = placed
    flags = [parameter.requires_grad for parameter in moe.model.parameters()]
    before = moe.model(random_ids()).logits
    with pytest.raises(RuntimeError, match="stop"):
        _spoil_and_stop(moe, before)
    assert [parameter.requires_grad for parameter in moe.model.parameters()] == flags
    assert vars(layer.experts)["forward"] is placed
    assert "forward" not in vars(moe.layers[2].experts)
    assert torch.equal(moe.model(random_ids()).logits, before)


def test_hooks_of_the_stack_run_once_per_call() -> None:
    moe = find_moe(tiny("mixtral"))
    calls: list[int] = []
    hook = moe.layers[0].experts.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad(), trainable_experts(moe, SELECTED), capture(moe) as trace:
        moe.model(random_ids())
    hook.remove()
    assert len(calls) == 1
    assert trace.indices[0].shape == (33, TOP_K)


@pytest.mark.parametrize(
    ("selected", "message"),
    [
        ([[0], [1]], "got 2 layers; expected 3 MoE layers"),
        ([[0], [1], [8]], "got 8; expected experts from 0 to 7"),
        ([[0], [-1], []], "got -1; expected experts from 0 to 7"),
        ([[], [], []], "no expert is selected"),
    ],
)
def test_a_selection_that_does_not_fit_is_refused(selected: list[list[int]], message: str) -> None:
    with pytest.raises(SeawallError, match=message), trainable_experts(find_moe(tiny("olmoe")), selected):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.to("meta"), "no data"),
        (lambda model: model.to(torch.float8_e4m3fn), "float8_e4m3fn"),
    ],
)
def test_weights_that_cannot_train_are_refused(change: Callable[[torch.nn.Module], object], message: str) -> None:
    model = tiny("olmoe")
    change(model)
    with pytest.raises(UnsupportedModelError, match=message), trainable_experts(find_moe(model), SELECTED):
        pass


@each_family
def test_written_copies_are_the_model_that_training_ends_with(family: str) -> None:
    moe = find_moe(tiny(family))
    before = _state(moe)
    with trainable_experts(moe, SELECTED) as copies:
        _train(moe, copies, steps=2)
        with copies.written(), torch.no_grad():
            inside = moe.model(random_ids()).logits
        assert all(torch.equal(tensor, before[name]) for name, tensor in moe.model.state_dict().items())
        _train(moe, copies, steps=1)
        with pytest.raises(RuntimeError, match="stop"):
            with copies.written():
                raise RuntimeError("stop")
        assert all(torch.equal(tensor, before[name]) for name, tensor in moe.model.state_dict().items())
        assert not copies.bypassed
    with trainable_experts(moe, SELECTED) as copies:
        _train(moe, copies, steps=2)
        copies.write_back()
    with torch.no_grad():
        assert torch.equal(moe.model(random_ids()).logits, inside)
    copies.revert()
    assert all(torch.equal(tensor, before[name]) for name, tensor in moe.model.state_dict().items())

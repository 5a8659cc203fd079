"""A delta turns one model into the other and back, to the last bit, or refuses and changes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seawall.artifacts.delta import Delta, Indices
from seawall.artifacts.store import tensor_digest, tensors_fingerprint
from seawall.errors import ArtifactError

INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
State = dict[str, Tensor]
Slices = dict[str, Indices]


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Thousands of small files are written here; that each reaches the disk is tested in `tests/runs`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def bits_of(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """The bit patterns: unlike floats, they tell -0.0 from 0.0 and every NaN from every other."""
    return {name: tensor.detach().view(INTEGERS[tensor.dtype]).flatten().tolist() for name, tensor in state.items()}


def copy_of(state: Mapping[str, Tensor]) -> State:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def made(old: Mapping[str, Tensor], new: Mapping[str, Tensor], slices: Mapping[str, Indices]) -> Delta:
    before = {name: old[name].clone() if at is None else old[name][list(at)] for name, at in slices.items()}
    return Delta.between(before, new, slices, base_model="sha256:base", result_model="sha256:result")


@st.composite
def any_bits(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uniform bit patterns, so that NaNs with every payload come up, and some special values."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    width = torch.iinfo(INTEGERS[dtype])
    ints = torch.randint(width.min, width.max + 1, shape, generator=generator, dtype=torch.int64)
    floats = ints.to(INTEGERS[dtype]).view(dtype)
    if floats.numel() >= 4:
        floats.view(-1)[:4] = torch.tensor([float("nan"), float("-inf"), -0.0, 0.0], dtype=dtype)
    return floats


@st.composite
def changes(draw: st.DrawFn) -> tuple[State, State, Slices]:
    """A model before and after, differing at random in the slices that are named and nowhere else."""
    old: State = {}
    new: State = {}
    slices: Slices = {}
    for number in range(draw(st.integers(1, 3))):
        name, dtype = f"layers.{number}.experts", draw(st.sampled_from(sorted(INTEGERS, key=str)))
        shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
        old[name] = draw(any_bits(shape, dtype))
        other = draw(any_bits(shape, dtype))
        whole = draw(st.booleans())
        at = None if whole else tuple(sorted(draw(st.sets(st.integers(0, shape[0] - 1)))))
        slices[name] = at
        new[name] = old[name].clone()
        new[name][list(range(shape[0]) if at is None else at)] = other[list(range(shape[0]) if at is None else at)]
    old["untouched"] = new["untouched"] = torch.ones(2)
    return old, new, slices


@settings(deadline=None, max_examples=60)
@given(changes())
def test_apply_gives_the_new_bits_and_revert_the_old_ones(change: tuple[State, State, Slices]) -> None:
    old, new, slices = change
    delta, state = made(old, new, slices), copy_of(old)
    delta.apply(state)
    assert bits_of(state) == bits_of(new)
    delta.revert(state)
    assert bits_of(state) == bits_of(old)


@settings(deadline=None, max_examples=20)
@given(changes())
def test_a_delta_survives_the_disk(change: tuple[State, State, Slices]) -> None:
    old, new, slices = change
    delta, state = made(old, new, slices), copy_of(old)
    with TemporaryDirectory() as folder:
        delta.save(Path(folder))
        loaded = Delta.load(Path(folder))
    assert loaded.slices == slices
    assert {name: t.tolist() for name, t in loaded.bits.items()} == {n: t.tolist() for n, t in delta.bits.items()}
    assert (loaded.base_model, loaded.result_model) == ("sha256:base", "sha256:result")
    loaded.apply(state)
    assert bits_of(state) == bits_of(new)


def planted() -> tuple[State, State, Slices]:
    torch.manual_seed(0)
    old = {"a": torch.randn(4, 3), "b": torch.randn(5).bfloat16(), "c": torch.randn(2, 2)}
    new = copy_of(old)
    new["a"][[1, 3]] += 1
    new["b"] *= 2
    return old, new, {"a": (1, 3), "b": None}


def other_bit(state: State) -> None:
    state["a"][1, 0] += 1


def swapped_names(state: State) -> None:
    state["c"] = state.pop("b")


def other_shape(state: State) -> None:
    state["b"] = torch.zeros(6).bfloat16()


def fewer_experts(state: State) -> None:
    state["a"] = state["a"][:3].clone()


def other_dtype(state: State) -> None:
    state["b"] = state["b"].float()


def same_width(state: State) -> None:
    state["b"] = state["b"].half()


def scalar(state: State) -> None:
    state["a"] = torch.tensor(1.0)


@pytest.mark.parametrize(
    "spoil", [other_bit, swapped_names, other_shape, fewer_experts, other_dtype, same_width, scalar]
)
def test_another_model_is_refused_before_anything_changes(spoil: Callable[[State], None]) -> None:
    old, new, slices = planted()
    delta, state = made(old, new, slices), copy_of(old)
    spoil(state)
    before = bits_of(state)
    with pytest.raises(ArtifactError, match="does not fit this model"):
        delta.apply(state)
    assert bits_of(state) == before


def test_bits_outside_the_slices_are_left_to_the_fingerprint_of_the_model() -> None:
    old, new, slices = planted()
    delta, state = made(old, new, slices), copy_of(old)
    state["a"][0, 0] += 1
    delta.apply(state)
    delta.revert(state)
    assert bits_of({**state, "a": state["a"][1:]}) == bits_of({**old, "a": old["a"][1:]})


def test_a_delta_of_an_earlier_version_checks_the_full_tensors() -> None:
    old, new, slices = planted()
    before, after = (tensors_fingerprint({name: state[name] for name in slices}) for state in (old, new))
    delta, state = replace(made(old, new, slices), before=before, after=after), copy_of(old)
    delta.apply(state)
    assert bits_of(state) == bits_of(new)
    delta.revert(state)
    state["a"][0, 0] += 1
    with pytest.raises(ArtifactError, match="does not fit this model"):
        delta.apply(state)


def test_the_bits_take_the_memory_of_the_old_slices_and_no_stack_is_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    old = {"experts": torch.randn(64, 10), "router": torch.randn(4)}
    new = copy_of(old)
    new["experts"][[5, 9]] += 1
    before = {"experts": old["experts"][[5, 9]], "router": old["router"].clone()}
    memory, hashed = {name: tensor.data_ptr() for name, tensor in before.items()}, []

    def digest(tensor: Tensor) -> str:
        hashed.append(tensor.numel())
        return tensor_digest(tensor)

    monkeypatch.setattr("seawall.artifacts.delta.tensor_digest", digest)
    slices: Slices = {"experts": (5, 9), "router": None}
    delta = Delta.between(before, new, slices, base_model="sha256:base", result_model="sha256:result")
    assert {name: tensor.data_ptr() for name, tensor in delta.bits.items()} == memory
    assert sorted(hashed) == [4, 4, 10, 10, 10, 10]


def test_applying_twice_says_that_nothing_is_left_to_do() -> None:
    old, new, slices = planted()
    delta, state = made(old, new, slices), copy_of(old)
    delta.apply(state)
    with pytest.raises(ArtifactError, match="nothing is left to do"):
        delta.apply(state)
    assert bits_of(state) == bits_of(new)
    delta.revert(state)
    with pytest.raises(ArtifactError, match=r"not the repaired model's.*nothing is left to do"):
        delta.revert(state)


def test_bits_that_do_not_lead_to_the_named_result_are_taken_off_again() -> None:
    old, new, slices = planted()
    delta, state = made(old, new, slices), copy_of(old)
    wrong = {**delta.bits, "b": delta.bits["b"] ^ 1}
    with pytest.raises(ArtifactError, match="the model is unchanged"):
        replace(delta, bits=wrong).apply(state)
    assert bits_of(state) == bits_of(old)


def test_parameters_that_want_gradients_and_transposed_memory_are_changed_in_place() -> None:
    old, new, slices = planted()
    delta = made(old, new, slices)
    parameter = torch.nn.Parameter(old["a"].t().contiguous().t())
    assert not parameter.is_contiguous()
    state = {**copy_of(old), "a": parameter}
    where = parameter.data_ptr()
    delta.apply(state)
    assert bits_of({"a": parameter.detach().contiguous()}) == bits_of({"a": new["a"]})
    assert parameter.data_ptr() == where
    assert parameter.requires_grad


@pytest.mark.parametrize("at", [None, (0, 2)])
def test_tied_weights_change_once(at: Indices) -> None:
    tied = torch.randn(3, 2)
    old = {"embed": tied.clone(), "head": tied.clone()}
    new = copy_of(old)
    for tensor in new.values():
        tensor[[0, 2]] *= -3
    state = {"embed": tied, "head": tied}
    delta = made(old, new, {"embed": at, "head": at})
    delta.apply(state)
    assert bits_of(state) == bits_of(new)
    delta.revert(state)
    assert bits_of(state) == bits_of(old)


def test_an_unchanged_model_makes_an_empty_change() -> None:
    old, _, slices = planted()
    delta, state = made(old, old, slices), copy_of(old)
    delta.apply(state)
    assert bits_of(state) == bits_of(old)
    assert all(not tensor.any() for tensor in delta.bits.values())


def test_a_delta_is_as_large_as_the_change(tmp_path: Path) -> None:
    old = {"experts": torch.zeros(64, 100, 10)}
    new = copy_of(old)
    new["experts"][5] += 1
    made(old, new, {"experts": (5,)}).save(tmp_path)
    assert (tmp_path / "delta.safetensors").stat().st_size < 1000 * 4 + 500


def test_indices_that_do_not_ascend_are_our_own_mistake() -> None:
    old, new, _ = planted()
    with pytest.raises(AssertionError, match="ascend"):
        made(old, new, {"a": (3, 1)})

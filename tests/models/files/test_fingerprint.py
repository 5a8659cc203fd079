from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from families import FAMILIES, tiny
from seawall.artifacts.store import tensor_digest
from seawall.models.files.fingerprint import (
    WeightDigests,
    model_fingerprint,
    state_fingerprint,
    tensor_fingerprint,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.float8_e4m3fn]


def test_the_formula() -> None:
    state = {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor([[3]], dtype=torch.int64)}
    one = hashlib.sha256((3).to_bytes(8, "little")).hexdigest()
    two = hashlib.sha256(bytes.fromhex("0000803f00000040")).hexdigest()
    lines = f"a int64 [1, 1] {one}\nb float32 [2] {two}\n"
    assert state_fingerprint(state) == "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize("family", FAMILIES)
def test_one_bit_anywhere_changes_it(family: str) -> None:
    model = tiny(family)
    before = model_fingerprint(model)
    assert before == model_fingerprint(tiny(family))
    for name, tensor in model.state_dict().items():
        flat = tensor.view(-1).view(torch.uint8)
        flat[-1] ^= 1
        assert model_fingerprint(model) != before, name
        flat[-1] ^= 1
    assert model_fingerprint(model) == before


def test_names_types_and_shapes_count() -> None:
    tensor = torch.zeros(2, 3)
    states: list[dict[str, Tensor]] = [
        {"a": tensor},
        {"b": tensor},
        {"a": tensor.reshape(3, 2)},
        {"a": tensor.view(torch.int32)},
        {"a": tensor, "b": tensor},
        {},
    ]
    assert len({state_fingerprint(state) for state in states}) == len(states)


def test_order_strides_and_sharing_do_not_count() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    other = torch.ones(3)
    assert state_fingerprint({"a": tensor, "b": other}) == state_fingerprint({"b": other, "a": tensor})
    assert tensor_fingerprint(tensor.T.contiguous().T) == tensor_fingerprint(tensor)
    assert state_fingerprint({"a": tensor, "b": tensor}) == state_fingerprint({"a": tensor, "b": tensor.clone()})


def test_shared_memory_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def digest(tensor: Tensor) -> str:
        read.append(tuple(tensor.shape))
        return tensor_digest(tensor)

    monkeypatch.setattr("seawall.models.files.fingerprint.tensor_digest", digest)
    model = tiny("olmoe", tie_word_embeddings=True)
    model_fingerprint(model)
    assert read.count(tuple(model.lm_head.weight.shape)) == 1
    assert len(read) == len(model.state_dict()) - 1


def _count_digests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Receives the size of every tensor that is read."""
    read: list[int] = []

    def digest(tensor: Tensor) -> str:
        read.append(tensor.numel())
        return tensor_digest(tensor)

    monkeypatch.setattr("seawall.models.files.fingerprint.tensor_digest", digest)
    return read


def _in_place(stack: Tensor) -> None:
    with torch.no_grad():
        stack[0] += 1


def _detached(stack: Tensor) -> None:
    stack.detach()[[0]] = 3.0


def _integers(stack: Tensor) -> None:
    flat = stack.detach().view(torch.int32)
    flat ^= 1


def _inference(stack: Tensor) -> None:
    with torch.inference_mode():
        stack.mul_(2)


def _other_memory(stack: Tensor) -> None:
    stack.data = stack.data * 2


@pytest.mark.parametrize("write", [_in_place, _detached, _integers, _inference, _other_memory])
def test_only_tensors_that_were_written_to_are_read_again(
    write: Callable[[Tensor], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("glm4_moe")
    digests, read = WeightDigests(model), _count_digests(monkeypatch)
    before = digests.fingerprint()
    assert before == model_fingerprint(model)
    read.clear()
    assert digests.fingerprint() == before
    assert read == []
    stack = next(parameter for parameter in model.parameters() if parameter.ndim == 3)
    write(stack)
    after = digests.fingerprint()
    assert read == [stack.numel()]
    assert after == model_fingerprint(model) != before


def test_a_replaced_tensor_is_read_though_its_memory_is_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Linear(64, 64)
    digests = WeightDigests(model)
    before = digests.fingerprint()
    model.weight = torch.nn.Parameter(torch.zeros(64, 64))
    assert digests.fingerprint() == model_fingerprint(model) != before


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_scalars_and_empty_tensors(dtype: torch.dtype) -> None:
    zeros = torch.zeros(3).to(dtype)
    assert tensor_digest(zeros) == hashlib.sha256(bytes(3 * dtype.itemsize)).hexdigest()
    assert tensor_digest(zeros[0]) == hashlib.sha256(bytes(dtype.itemsize)).hexdigest()
    assert tensor_digest(zeros[:0]) == hashlib.sha256(b"").hexdigest()


def test_a_view_into_a_larger_tensor_is_read_alone() -> None:
    stack = torch.arange(12.0).reshape(3, 4)
    assert tensor_fingerprint(stack[1]) == tensor_fingerprint(stack[1].clone())
    assert state_fingerprint({"a": stack[0], "b": stack[1]}) != state_fingerprint({"a": stack[1], "b": stack[0]})

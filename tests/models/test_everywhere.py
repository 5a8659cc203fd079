"""Changes that every process makes: what is held meanwhile, and a copy that is not changed as the first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import pytest
import torch

from families import tiny, tiny_tokenizer
from seawall.distributed.process import Processes
from seawall.models.everywhere import Held, everywhere, slices_everywhere
from seawall.models.moe.exchange import routed_as
from seawall.models.moe.find import MoEModel, find_moe
from seawall.models.moe.switch import steered
from seawall.models.replicas import Replica, _compute
from seawall.models.slices import Slices

NUMBER = Held[int]("number")


@dataclass(frozen=True)
class Heard(Processes):
    """The second of two processes, which keeps what the first one would get."""

    values: list[Any] = field(default_factory=list)

    def gather(self, value: Any) -> list[Any]:
        self.values.append(value)
        return []


@contextmanager
def numbered(number: int, moe: MoEModel) -> Iterator[int]:
    yield number + moe.num_layers


def test_a_value_is_held_inside_and_its_name_alone_is_sent() -> None:
    moe = find_moe(tiny("glm4_moe"))
    sent = deepcopy(NUMBER)
    assert asdict(sent) == {"name": "number"}
    with everywhere(moe, partial(numbered, 5), held=NUMBER) as number:
        assert sent.value == NUMBER.value == number == 5 + moe.num_layers
    with pytest.raises(KeyError):
        _ = NUMBER.value


def test_tensors_are_held_until_an_error_too() -> None:
    model, tensors = tiny("llama"), Held[Any]("tensors")
    with slices_everywhere(model, tensors, {"lm_head.weight": Slices((0, 3), torch.ones(2))}):
        assert tensors.value["lm_head.weight"].tensor.sum() == 2
    with pytest.raises(ZeroDivisionError), slices_everywhere(model, tensors, {}):
        raise ZeroDivisionError
    with slices_everywhere(model, tensors, {}):
        assert tensors.value == {}


def test_a_copy_that_is_not_changed_as_the_first_computes_nothing() -> None:
    model, heard = tiny("glm4_moe"), Heard(1, 2)
    replica, moe = Replica(heard, (model, tiny_tokenizer())), find_moe(model)
    off = [[0]] * moe.num_layers
    for change, hooks in ((steered(moe, off=off), moe.num_layers), (routed_as(moe, {}), 1)):
        _compute(replica, _layers, [0, 7], True, hooks)
        with change:
            _compute(replica, _layers, [0, 7], True, hooks)
            _compute(replica, _layers, [0, 7], True, 0)
    missing, same, surplus = heard.values[:3]
    assert same == 7 + moe.num_layers
    assert "is not changed as the first; got 0 hooks" in missing.message
    assert f"got {moe.num_layers} hooks; expected 0" in surplus.message
    missing, same, surplus = heard.values[3:]
    assert same == 7 + moe.num_layers
    assert "got 0 hooks; expected 1" in missing.message
    assert "got 1 hooks; expected 0" in surplus.message


def _layers(moe: MoEModel, number: int) -> int:
    return number + moe.num_layers

"""Changes of a model in every process of a launch: hooks, masks, other weights, a training.

The first process names a change, a function of a module with its arguments, and enters it; so does every process that
holds a copy, on its own copy. What is computed inside (`shared_results`) is then computed under the change everywhere.
A model without copies changes in its own process alone.

A first process that leaves a change by an error shares the model no longer: the others may still be inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from transformers import PreTrainedModel

from seawall.distributed.process import Processes, current_launch
from seawall.models.moe.find import MoEModel
from seawall.models.replicas import Replica, Subject, attempted, forget_copies, holders, model_of, require_success
from seawall.models.slices import Slices

Value = TypeVar("Value")
Change = Callable[[Any], AbstractContextManager[Value]]
"""Called with the model, or with its MoE layers; makes a new context manager."""
Shapes = Mapping[str, tuple[tuple[int, ...] | None, torch.Size, torch.dtype]]
"""By name: indices, shape and type of the slices."""

_held: dict[str, Any] = {}


@dataclass(frozen=True)
class Held(Generic[Value]):
    """A value of which every process has its own, under one name; only the name is sent."""

    name: str

    @property
    def value(self) -> Value:
        """This process's value, inside the change that holds it."""
        value: Value = _held[self.name]
        return value

    @contextmanager
    def holding(self, value: Value) -> Iterator[None]:
        """Inside, this process has a value under the name."""
        assert self.name not in _held, self.name
        _held[self.name] = value
        try:
            yield
        finally:
            del _held[self.name]


@contextmanager
def everywhere(
    subject: Subject,
    change: Change[Value],
    *,
    held: Held[Value] | None = None,
    elsewhere: Change[Value] | None = None,
) -> Iterator[Value]:
    """Inside, `change(subject)` is entered in every process that holds the model; yields this process's value.

    Args:
        subject: a model, or the MoE layers of one.
        change: a function of a module, or a `partial` of one, with arguments that can be sent.
        held: a name under which every process has the value that it entered with.
        elsewhere: what the other processes enter in place of `change`.

    Raises:
        SeawallError: a process cannot enter the change.
    """
    model = model_of(subject)
    processes = holders(model)
    with ExitStack() as after_an_error:
        if processes.count > 1:
            after_an_error.callback(forget_copies, model)
            processes.order([_enter, elsewhere or change, held, isinstance(subject, MoEModel)])
        with _entered(subject, change, held) as value:
            if processes.count > 1:
                require_success(processes.gather(None))
            yield value
        after_an_error.pop_all()
    processes.order([_leave])


@contextmanager
def slices_everywhere(
    model: PreTrainedModel, name: Held[Mapping[str, Slices]], tensors: Mapping[str, Slices]
) -> Iterator[None]:
    """Inside, every process that holds the model has these slices of tensors too, sent one tensor's at a time.

    Args:
        model: the model.
        name: under which every process has them.
        tensors: by names of the model's state dict, each on its parameter's device, as in all processes.
    """
    shapes = {key: (indices, tensor.shape, tensor.dtype) for key, (indices, tensor) in tensors.items()}
    with everywhere(model, partial(_sent, tensors), held=name, elsewhere=partial(_received, shapes)):
        yield


def together(model: PreTrainedModel) -> Processes:
    """The processes that share the model, in every one of them; a single one without copies."""
    launch = current_launch()
    return holders(model) if launch.first else launch


@contextmanager
def _entered(subject: Any, change: Change[Value], name: Held[Value] | None) -> Iterator[Value]:
    with ExitStack() as stack:
        value = stack.enter_context(change(subject))
        if name is not None:
            stack.enter_context(name.holding(value))
        yield value


def _enter(replica: Replica, change: Change[Any], name: Held[Any] | None, takes_moe: bool) -> None:
    def work() -> None:
        stack = ExitStack()
        stack.enter_context(_entered(replica.moe if takes_moe else replica.model, change, name))
        replica.changes.append(stack)

    replica.processes.gather(attempted(work))


def _leave(replica: Replica) -> None:
    replica.changes.pop().close()


@contextmanager
def _sent(tensors: Mapping[str, Slices], model: PreTrainedModel) -> Iterator[Mapping[str, Slices]]:
    if holders(model).count > 1:
        for _, tensor in tensors.values():
            holders(model).copy_from_first(tensor.contiguous())
    yield tensors


@contextmanager
def _received(shapes: Shapes, model: PreTrainedModel) -> Iterator[Mapping[str, Slices]]:
    state, tensors = model.state_dict(), dict[str, Slices]()
    for key, (indices, shape, dtype) in shapes.items():
        tensor = torch.empty(shape, dtype=dtype, device=state[key].device)
        current_launch().copy_from_first(tensor)
        tensors[key] = Slices(indices, tensor)
    yield tensors

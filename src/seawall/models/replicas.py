"""Copies of one model in all processes of a launch: the first process orders, every process computes its share.

A model without copies (a judge's, or any model without a launch) computes in its own process alone. A change of the
first process's weights reaches the copies by `copy_weights`; hooks and passing changes by `models.everywhere`. A copy
with other hooks than the first process's model computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.distributed.process import ALONE, Processes, current_launch
from seawall.errors import ArtifactError, SeawallError
from seawall.models.backoff import in_buckets
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.greedy import adopt_independence_check, independence_check
from seawall.models.memory import release_memory
from seawall.models.moe.find import MoEModel, find_moe
from seawall.models.sharding import in_step, is_sharded

Item = TypeVar("Item")
Result = TypeVar("Result")
Subject = TypeVar("Subject", PreTrainedModel, MoEModel)
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@dataclass(eq=False)
class Replica:
    """The copy of the model in a process that is not the first.

    Attributes:
        processes: of the launch.
        loaded: model and tokenizer; None before the first is loaded.
        training: what a shared training keeps between two orders.
        changes: the changes of the model that were entered and not left, the latest last (`models.everywhere`).
    """

    processes: Processes
    loaded: Loaded | None = None
    training: dict[str, Any] = field(default_factory=dict)
    changes: list[ExitStack] = field(default_factory=list)

    @property
    def model(self) -> PreTrainedModel:
        """The model."""
        assert self.loaded is not None
        return self.loaded[0]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer."""
        assert self.loaded is not None
        return self.loaded[1]

    @cached_property
    def moe(self) -> MoEModel:
        """The MoE layers of the model."""
        return find_moe(self.model)


@dataclass(frozen=True)
class _Failure:
    """An error for users in a process that is not the first."""

    message: str


_shared: WeakKeyDictionary[PreTrainedModel, Processes] = WeakKeyDictionary()
"""The models of the first process that have copies in others, with all processes that hold one."""


def serve(processes: Processes) -> None:
    """The loop of every process but the first: obeys orders until the first process ends it; writes nothing."""
    replica = Replica(processes)
    while (order := processes.await_order()) is not None:
        function, *arguments = order
        try:
            function(replica, *arguments)
        except SeawallError as error:
            raise SeawallError(f"process {processes.rank} of the launch: {error}") from error


def holders(model: PreTrainedModel) -> Processes:
    """The processes that hold a copy of the first process's model; a single one without copies."""
    return _shared.get(model, ALONE)


def load_copies(load: Callable[..., Loaded], *arguments: Any) -> None:
    """Tells the other processes to load the model that this process loads next; nothing without a launch.

    Args:
        load: a function of a module.
        *arguments: of `load`.
    """
    current_launch().order([_load, load, arguments])


def register_copies(model: PreTrainedModel, fingerprint: str) -> None:
    """Waits for the copies that `load_copies` ordered, and shares the computations of this model from here on.

    Raises:
        ArtifactError: a process has loaded other weights.
        SeawallError: a process cannot load the model.
    """
    processes = current_launch()
    if processes.count == 1:
        return
    for rank, weights in enumerate(require_success(processes.gather(fingerprint))):
        if weights != fingerprint:
            raise ArtifactError(
                f"process {rank} of the launch has loaded other weights than the first",
                got=f"{weights[:23]}...",
                expected=f"{fingerprint[:23]}...",
                remedy="give all nodes the same files of the model",
            )
    _shared[model] = processes


def copy_check(model: PreTrainedModel) -> None:
    """Spares the copies the check whether rows are independent; nothing for a model without copies."""
    holders(model).order([_adopt_check, independence_check(model)])


def computed_in_step(loaded: Loaded, function: Callable[..., Result], *arguments: Any) -> Result:
    """`function(loaded, *arguments)`; where the weights are sharded, computed by every process that has a part of them.

    Args:
        loaded: a model and its tokenizer.
        function: a function of a module, whose passes and reads depend on its arguments alone.
        *arguments: can be sent to another process.
    """
    if not is_sharded(loaded[0]):
        return function(loaded, *arguments)
    holders(loaded[0]).order([_compute_in_step, function, arguments])
    with in_step():
        return function(loaded, *arguments)


def shared_results(
    subject: Subject, function: Callable[[Subject, Item], Result], items: Sequence[Item]
) -> Iterator[Result]:
    """`function(subject, item)` for each item, in order; item i is computed by process i modulo their number.

    Every item is computed as in one process, so the results are the same.

    Args:
        subject: a model, or the MoE layers of one.
        function: a function of a module, or a `partial` of one; its result can be sent to another process.
        items: the arguments; those of one round are sent to all processes.
    """
    processes = holders(model_of(subject))
    if processes.count == 1 or len(items) == 1:
        yield from (function(subject, item) for item in items)
        return
    for start in range(0, len(items), processes.count):
        share = items[start : start + processes.count]
        processes.order([_compute, function, share, isinstance(subject, MoEModel), _hooks(model_of(subject))])
        yield from require_success(processes.gather(function(subject, share[0])))[: len(share)]


def shared_buckets(
    subject: Subject,
    function: Callable[[Subject, Item], Result],
    item_of: Callable[[list[int]], Item],
    buckets: Iterable[Sequence[int]],
) -> Iterator[tuple[list[int], Result]]:
    """`function(subject, item_of(positions))` for each bucket of positions, with the positions.

    Alone, a bucket that exceeds memory is halved (`in_buckets`); in a launch the buckets are shared as they are.

    Args:
        subject: as of `shared_results`.
        function: likewise.
        item_of: makes the argument for some positions.
        buckets: positions of the rows of each forward pass, longest rows first.

    Raises:
        SeawallError: one row alone exceeds memory.
    """
    if holders(model_of(subject)).count == 1:
        yield from in_buckets(buckets, lambda positions: function(subject, item_of(positions)))
        return
    shares = [list(bucket) for bucket in buckets]
    yield from zip(shares, shared_results(subject, function, [item_of(share) for share in shares]), strict=True)


def copy_weights(model: PreTrainedModel, names: Sequence[str]) -> None:
    """Sends tensors of the first process's model to all copies of it, in place; nothing for a model without copies."""
    processes = holders(model)
    if processes.count > 1:
        processes.order([_receive, list(names)])
        _copy(model, names, processes)


def release_copies(model: PreTrainedModel) -> None:
    """Frees the copies; the model is computed by this process alone from here on."""
    processes = _shared.pop(model, ALONE)
    processes.order([_release])


def forget_copies(model: PreTrainedModel) -> None:
    """Shares the model no longer, and tells the other processes nothing: after an error they may not listen."""
    _shared.pop(model, None)


def model_of(subject: PreTrainedModel | MoEModel) -> PreTrainedModel:
    """The model of a subject."""
    return subject.model if isinstance(subject, MoEModel) else subject


def _copy(model: PreTrainedModel, names: Sequence[str], processes: Processes) -> None:
    state = model.state_dict()
    for name in names:
        processes.copy_from_first(state[name])


def _receive(replica: Replica, names: Sequence[str]) -> None:
    _copy(replica.model, names, replica.processes)


def _compute_in_step(replica: Replica, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    assert replica.loaded is not None
    with in_step():
        function(replica.loaded, *arguments)


def _release(replica: Replica) -> None:
    replica.loaded = None
    vars(replica).pop("moe", None)
    release_memory()


def _adopt_check(replica: Replica, check: tuple[int, bool]) -> None:
    adopt_independence_check(replica.model, check)


def _load(replica: Replica, load: Callable[..., Loaded], arguments: Sequence[Any]) -> None:
    def work() -> str:
        _release(replica)
        with in_step():
            replica.loaded = load(*arguments)
            return model_fingerprint(replica.model)

    replica.processes.gather(attempted(work))


def _hooks(model: PreTrainedModel) -> int:
    """Number of hooks and replaced forwards of the model, by which a copy with other changes is told."""
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + ("forward" in vars(module))
        for module in model.modules()
    )


def _compute(
    replica: Replica, function: Callable[[Any, Any], Any], share: Sequence[Any], takes_moe: bool, hooks: int
) -> None:
    rank = replica.processes.rank

    def work() -> Any:
        if (own := _hooks(replica.model)) != hooks:
            raise SeawallError("the copy of the model is not changed as the first", got=f"{own} hooks", expected=hooks)
        return function(replica.moe if takes_moe else replica.model, share[rank]) if rank < len(share) else None

    replica.processes.gather(attempted(work))


def attempted(work: Callable[[], Result]) -> Result | _Failure:
    """The result of `work` for the first process, or the error for users in its place."""
    try:
        return work()
    except SeawallError as error:
        return _Failure(str(error))


def require_success(values: list[Any]) -> list[Any]:
    """The values, none of which is a failure.

    Raises:
        SeawallError: of the first process that failed.
    """
    for rank, value in enumerate(values):
        if isinstance(value, _Failure):
            raise SeawallError(f"process {rank} of the launch: {value.message}")
    return values

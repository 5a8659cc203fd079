"""The processes of a launch (`torchrun`, `accelerate launch`): the first one works and gives orders to the others.

A device map spreads a model that is too large for one device, in one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed
from accelerate import Accelerator, PartialState
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor

from seawall.errors import ConfigError, Interrupted
from seawall.launcher import is_launched, launched_processes

Value = TypeVar("Value")

_LAUNCHER = frozenset(
    {
        *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK"),
        *("ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
    }
)
_PATIENCE = timedelta(days=7)
"""Timeout of the other processes, which wait while the first one may evaluate for hours."""


def one_process() -> Accelerator:
    """The accelerator of this process.

    Settings of `accelerate config` in the environment (mixed precision, gradient accumulation) are ignored, because
    they would change the numbers: the model's weights and the float32 copies determine the precision.

    Raises:
        ConfigError: several processes were launched; each would train the same model and write the same files.
    """
    if is_launched():
        raise ConfigError(
            "this command runs in one process",
            got=f"{launched_processes()} processes",
            expected="one",
            remedy="start seawall without accelerate launch or torchrun; model.device: auto uses all devices",
        )
    return _accelerator()


def training_accelerator() -> Accelerator:
    """The accelerator of this process for a training that the processes of the current launch share.

    Raises:
        ConfigError: as `one_process`, where no launch is current.
    """
    return _accelerator() if current_launch().count > 1 else one_process()


def _accelerator() -> Accelerator:
    return Accelerator(mixed_precision="no", gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1))


@dataclass(frozen=True)
class Processes:
    """The processes of one launch. The first one works; the others wait for its orders, and compute their shares.

    Every method that communicates raises `Interrupted` where another process has ended, so that a launch never hangs.

    Attributes:
        rank: rank of this process; the first is 0.
        count: number of processes.
    """

    rank: int = 0
    count: int = 1
    _group: Any = field(default=None, repr=False)

    @property
    def first(self) -> bool:
        """Whether this is the first process, which works alone and writes files."""
        return self.rank == 0

    def order(self, order: list[Any] | None) -> None:
        """Sends an order to the other processes, if there are any; None ends them."""
        if self.first and self.count > 1:
            self._broadcast([order])

    def await_order(self) -> list[Any] | None:
        """Waits for the first process's order; None means to end."""
        received: list[Any] = [None]
        self._broadcast(received)
        order: list[Any] | None = received[0]
        return order

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes by rank, in the first process; empty in the others."""
        values: list[Any] = [None] * self.count if self.first else []
        with _peers():
            torch.distributed.gather_object(value, values if self.first else None, dst=0, group=self._group)
        return values

    def gather_everywhere(self, value: Value) -> list[Value]:
        """The values of all processes by rank, in every process."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with _peers():
            torch.distributed.all_gather_object(values, value, group=self._group)
        return values

    def sum_in_place(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its sum over all processes; equal in all of them to the last bit."""
        with _peers():
            for tensor in tensors:
                torch.distributed.all_reduce(tensor, group=self._group_for(tensor))

    def copy_from_first(self, tensor: Tensor) -> None:
        """Replaces a tensor by the first process's."""
        self.copy_from(0, tensor)

    def copy_from(self, rank: int, tensor: Tensor) -> None:
        """Replaces a tensor by that of the process `rank`."""
        received = tensor.contiguous()  # NCCL sends nothing else
        with _peers():
            torch.distributed.broadcast(received, src=rank, group=self._group_for(tensor))
        if received is not tensor:
            tensor.copy_(received)

    def tensors_of_first(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The first process's tensors by name, on the CPU in the other processes, one message for each."""
        shapes = [{name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}]
        self._broadcast(shapes)
        received = {}
        for name, (shape, dtype) in shapes[0].items():
            received[name] = (
                tensors[name].detach().cpu().contiguous() if self.first else torch.empty(shape, dtype=dtype)
            )
            self.copy_from_first(received[name])
        return received

    def _group_for(self, tensor: Tensor) -> Any:
        """The group of the CPU, or the launch's own for tensors on an accelerator."""
        return self._group if tensor.device.type == "cpu" else None

    def _broadcast(self, box: list[Any]) -> None:
        with _peers():
            torch.distributed.broadcast_object_list(box, src=0, group=self._group)


ALONE = Processes()
"""One process, without a launch."""


@contextmanager
def _peers() -> Iterator[None]:
    """Turns the errors of torch's collectives, whose other side has ended, into an interruption."""
    try:
        yield
    except RuntimeError as error:
        raise Interrupted("another process of the launch has ended") from error


_current = [ALONE]
"""The stack of launches; the last is the current one."""


def current_launch() -> Processes:
    """The processes that share the work of this command; a single one unless `launch_is_current`."""
    return _current[-1]


@contextmanager
def launch_is_current(processes: Processes) -> Iterator[None]:
    """Inside, models and trainings are shared with these processes."""
    _current.append(processes)
    try:
        yield
    finally:
        _current.pop()


def require_joined() -> None:
    """Refuses to work in each of several launched processes as if it were alone.

    Raises:
        ConfigError: a launcher has started several processes, which no command has joined.
    """
    if is_launched() and current_launch() is ALONE:
        raise ConfigError(
            "Python functions of seawall work in one process",
            got=f"{launched_processes()} processes",
            expected="one",
            remedy="launch the command: torchrun --nproc_per_node N -m seawall run RECIPE.yaml",
        )


def environment_alone() -> dict[str, str]:
    """The environment without the launcher's variables, for a fresh process that is not part of the launch."""
    elastic = "TORCHELASTIC_"
    return {name: value for name, value in os.environ.items() if not (name in _LAUNCHER or name.startswith(elastic))}


def launched(*, device: str) -> Processes:
    """The processes of `accelerate launch` or `torchrun`; a single one without a launcher.

    Args:
        device: `model.device` of the recipe.

    Raises:
        ConfigError: several processes would share one device.
    """
    if not is_launched():
        return ALONE
    if device not in ("auto", "cpu"):
        raise ConfigError(
            "several processes would share one device",
            got=f"model.device={device}",
            expected="auto, which gives each process its own device, or cpu",
        )
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    # Accelerate starts no group of processes by itself where `auto` finds no accelerator, or one for a single process.
    on_cpu = device == "cpu" or accelerator is None or accelerator.type == "mps"
    with _peers():
        state = PartialState(cpu=on_cpu, timeout=_PATIENCE)
        group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
    assert state.num_processes == launched_processes()
    return Processes(int(state.process_index), int(state.num_processes), group)

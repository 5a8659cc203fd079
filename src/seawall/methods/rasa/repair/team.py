"""The processes that repair together: every update's rows are divided, its gradients summed, its step made by all.

The first process runs the repair and alone writes checkpoints. The others hold the same copies and optimizers, and
obey: prepare the losses, begin the training, make an update, end. Losses are weighted by the counts of the full batch,
so the sum of all shares is the loss of one process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from seawall.config.repair import RepairConfig, memory_settings
from seawall.distributed.process import Processes
from seawall.methods.rasa.repair.inputs import RepairInputs
from seawall.methods.rasa.repair.phases import Phase, make_phases
from seawall.methods.rasa.repair.steps import RepairLosses
from seawall.methods.rasa.repair.trainables import Trainables, routers_below, trainables
from seawall.models.backoff import memory_remedy
from seawall.models.checkpointing import gradient_checkpointing
from seawall.models.moe.find import MoEModel
from seawall.models.moe.trainable_copies import Part, parts_of, write_slices
from seawall.models.replicas import Replica, holders
from seawall.models.sharding import in_step, is_sharded
from seawall.train.loop import Trainer
from seawall.train.peers import LaunchPeers

Layers = Sequence[Sequence[int]]
"""Selected experts by MoE layer."""
_WEIGHTS, _STATE = "weights/", "state/"


@final
@dataclass(frozen=True)
class Team:
    """The first process's orders for one repair; they reach nobody where the model has no copies."""

    processes: Processes

    def peers(self, phase: str) -> LaunchPeers | None:
        """The processes that train this phase together; None for a single one."""
        return LaunchPeers(self.processes, (_update, phase)) if self.processes.count > 1 else None

    def prepare(self, inputs: RepairInputs, config: RepairConfig, first_changed: int) -> None:
        """Tells the others to record the original model, as this process does next."""
        self.processes.order([_prepare, inputs, config, first_changed])

    def begin(self, layers: Layers) -> None:
        """Tells the others to make the trainable copies, as this process does next, and to wait for `share`."""
        self.processes.order([_begin, layers])

    def share(self, training: Trainables, trainers: Mapping[str, Trainer[Any]]) -> None:
        """Gives the others the copies' values and the optimizers' state, which a checkpoint may have restored."""
        if self.processes.count > 1:
            tensors = {f"{_WEIGHTS}{name}": value for name, value in training.state().items()}
            for phase, trainer in trainers.items():
                tensors |= {f"{_STATE}{phase}/{key}": value for key, value in trainer.state().items()}
            self.processes.tensors_of_first(tensors)

    def begin_round(self, number: int) -> None:
        """Tells the others that round `number` (from 0) begins."""
        self.processes.order([_begin_round, number])

    def read(self, layers: Layers, config: RepairConfig) -> None:
        """Tells the others to make trainable copies and drop them, as this process does next with sharded weights."""
        self.processes.order([_read, layers, config])

    def write(self, parts: Sequence[Part], values: Mapping[str, Tensor]) -> None:
        """Gives the others values to write into their slices of sharded weights, as this process does next."""
        if self.processes.count > 1:
            self.processes.order([_write, {part.name: part.indices for part in parts}])
            self.processes.tensors_of_first(values)

    def end(self) -> None:
        """Tells the others to take the copies off their models, which have their original weights then."""
        self.processes.order([_end])


def team_of(moe: MoEModel) -> Team:
    """The processes that hold a model."""
    return Team(holders(moe.model))


@dataclass(frozen=True, eq=False)
class _Training:
    """What a process that is not the first keeps of a repair."""

    inputs: RepairInputs
    config: RepairConfig
    losses: RepairLosses


@contextmanager
def _in_step(replica: Replica, config: RepairConfig) -> Iterator[None]:
    """Inside, this process trains as the first one does; exhausted memory is one line, as there."""
    settings = memory_settings(config, fsdp=is_sharded(replica.model))
    with in_step(), memory_remedy("the repair", settings):
        yield


def _prepare(replica: Replica, inputs: RepairInputs, config: RepairConfig, first_changed: int) -> None:
    moe, processes = replica.moe, replica.processes
    with _in_step(replica, config):
        losses = RepairLosses(
            moe,
            replica.tokenizer,
            inputs,
            config,
            first_changed=first_changed,
            moving=routers_below(moe, first_changed, config),
            processes=processes,
        )
    replica.training["repair"] = _Training(inputs, config, losses)


def _begin(replica: Replica, layers: Layers) -> None:
    repair: _Training = replica.training["repair"]
    stack = replica.training["stack"] = ExitStack()
    with _in_step(replica, repair.config):
        training = stack.enter_context(trainables(replica.moe, layers, repair.config))
    stack.enter_context(gradient_checkpointing(replica.model, enabled=repair.config.gradient_checkpointing))
    peers = Team(replica.processes).peers
    phases = {phase.name: phase for phase in make_phases(training, repair.losses, repair.config, repair.inputs, peers)}
    tensors = replica.processes.tensors_of_first({})
    training.load_state(_named(tensors, _WEIGHTS))
    for name, phase in phases.items():
        phase.trainer.load_state(_named(tensors, f"{_STATE}{name}/"))
    replica.training |= {"copies": training, "phases": phases}


def _begin_round(replica: Replica, number: int) -> None:
    replica.training["repair"].losses.begin_round(number)


def _update(replica: Replica, name: str, batch: Any) -> None:
    phase: Phase = replica.training["phases"][name]
    replica.training["copies"].only(phase.parameters)
    with _in_step(replica, replica.training["repair"].config):
        phase.trainer.fit([batch], phase.loss, lambda row: None)


def _read(replica: Replica, layers: Layers, config: RepairConfig) -> None:
    with _in_step(replica, config), trainables(replica.moe, layers, config):
        pass


def _write(replica: Replica, slices: Mapping[str, tuple[int, ...] | None]) -> None:
    weights = replica.processes.tensors_of_first({})
    with in_step():
        write_slices(parts_of(replica.model, slices), weights)


def _end(replica: Replica) -> None:
    replica.training["stack"].close()
    replica.training.clear()


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

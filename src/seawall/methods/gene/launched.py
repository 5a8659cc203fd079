"""A gene's adapter in every process of a launch: attached, trained, disabled, with other factors.

The first process distils. Each process has the adapter on its copy of the model and an optimizer; the rows of an update
are divided, losses are weighted by the rows of the full batch, gradients are summed, and all make the same step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from transformers import PreTrainedModel

from seawall.artifacts.adapter import GenePoint
from seawall.distributed.process import Processes, training_accelerator
from seawall.methods.gene.examples import MEMORY_REMEDY
from seawall.models.backoff import RowLimit, memory_remedy
from seawall.models.everywhere import Held, everywhere, together
from seawall.models.lora.attach import AttachedAdapter, attach_adapter
from seawall.models.replicas import Replica, holders
from seawall.train.loop import BatchLoss, Losses, Row, Settings, Trainer
from seawall.train.peers import LaunchPeers

RowLosses = Callable[[PreTrainedModel, list[int]], Tensor]
"""(model, positions of examples) -> their losses (B); a function of a module, a `partial` or a method."""


@dataclass(frozen=True)
class AdapterShape:
    """What `attach_adapter` is told: matrices, rank, scaling, and the seed of the initial factors."""

    points: Mapping[str, GenePoint]
    rank: int
    scaling: float
    seed: int


@dataclass(frozen=True, eq=False)
class RowTraining:
    """The training of an attached adapter on rows, in one process.

    Attributes:
        trainer: steps the adapter's factors.
        loss: this process's part of the loss of a batch, which is the mean of its rows' losses.
    """

    trainer: Trainer[list[int]]
    loss: BatchLoss[list[int]]

    def fit(self, batches: Sequence[list[int]], log: Callable[[Row], None]) -> None:
        """Makes an update per batch of positions.

        Raises:
            SeawallError: a loss is not finite, or memory ran out.
        """
        with memory_remedy("the training of a gene's adapter", MEMORY_REMEDY):
            self.trainer.fit(batches, self.loss, log)


ADAPTER = Held[AttachedAdapter]("adapter of a gene")
TRAINING = Held[RowTraining]("training of a gene")


@contextmanager
def attached_everywhere(model: PreTrainedModel, shape: AdapterShape) -> Iterator[AttachedAdapter]:
    """Inside, the model and its copies have a new adapter with equal factors; it stays on the model.

    Raises:
        SeawallError: as `attach_adapter`.
    """
    with everywhere(model, partial(_attached, shape), held=ADAPTER) as attached:
        share_factors(attached)
        yield attached


def share_factors(attached: AttachedAdapter) -> None:
    """Gives the adapter's copies the factors of this process; nothing for a model without copies."""
    processes = holders(attached.model)
    if processes.count > 1:
        processes.order([_receive_factors])
        _copy_factors(attached, processes)


@contextmanager
def disabled_everywhere(attached: AttachedAdapter) -> Iterator[None]:
    """Inside, the model and its copies compute without the adapter."""
    with everywhere(attached.model, lambda model: attached.disabled(), elsewhere=_disabled):
        yield


@contextmanager
def training_everywhere(attached: AttachedAdapter, losses: RowLosses, settings: Settings) -> Iterator[RowTraining]:
    """Inside, the adapter trains; every process that holds the model makes the same updates."""
    own = partial(_training, losses, settings, attached=attached)
    elsewhere = partial(_training_of_copy, losses, settings)
    with everywhere(attached.model, own, held=TRAINING, elsewhere=elsewhere) as training:
        yield training


@contextmanager
def _attached(shape: AdapterShape, model: PreTrainedModel) -> Iterator[AttachedAdapter]:
    yield attach_adapter(model, shape.points, rank=shape.rank, scaling=shape.scaling, seed=shape.seed)


def _receive_factors(replica: Replica) -> None:
    _copy_factors(ADAPTER.value, replica.processes)


def _copy_factors(attached: AttachedAdapter, processes: Processes) -> None:
    for factor in attached.parameters().values():
        processes.copy_from_first(factor.data)


def _disabled(model: PreTrainedModel) -> AbstractContextManager[None]:
    return ADAPTER.value.disabled()


@contextmanager
def _training(
    losses: RowLosses, settings: Settings, model: PreTrainedModel, *, attached: AttachedAdapter
) -> Iterator[RowTraining]:
    processes, limit = together(model), RowLimit(None, automatic=True)

    def loss(positions: list[int]) -> Iterator[Losses]:
        own = positions[processes.rank :: processes.count]
        for rows in limit.chunks(own) if own else ():
            yield losses(attached.model, rows).mean() * (len(rows) / len(positions)), {}

    trainer = Trainer[list[int]](
        attached.parameters(),
        settings,
        training_accelerator(),
        back_off=limit.halve,
        peers=LaunchPeers(processes, (_update,)) if processes.count > 1 else None,
    )
    yield RowTraining(trainer, loss)


def _training_of_copy(
    losses: RowLosses, settings: Settings, model: PreTrainedModel
) -> AbstractContextManager[RowTraining]:
    return _training(losses, settings, model, attached=ADAPTER.value)


def _update(replica: Replica, batch: list[int]) -> None:
    TRAINING.value.fit([batch], lambda row: None)

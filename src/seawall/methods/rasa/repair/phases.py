"""The two phases of a round, expert step and router step: parameters, loss, batches and optimizer of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import nn

from seawall.config.repair import ExpertStep, RepairConfig, RouterStep
from seawall.distributed.process import training_accelerator
from seawall.methods.rasa.repair.batches import ExpertBatch, beside_retained, step_batches
from seawall.methods.rasa.repair.inputs import RepairInputs
from seawall.methods.rasa.repair.rounds import RepairProgress
from seawall.methods.rasa.repair.steps import RepairLosses
from seawall.methods.rasa.repair.trainables import Trainables
from seawall.train.loop import BatchLoss, Peers, Settings, Trainer

AnyStep = ExpertStep | RouterStep


@final
@dataclass(frozen=True, eq=False)
class Phase:
    """One step of every round.

    Attributes:
        name: `expert` or `router`.
        parameters: the parameters to train.
        trainer: with an optimizer that is kept through all rounds.
        loss: of one batch.
        batches: of a round (from 0); every round has the same number.
        begin: called with the round before its updates.
    """

    name: str
    parameters: Mapping[str, nn.Parameter]
    trainer: Trainer[Any]
    loss: BatchLoss[Any]
    batches: Callable[[int], Sequence[Any]]
    begin: Callable[[int], None] = lambda number: None

    def run(self, number: int, training: Trainables, log: Callable[[dict[str, Any]], None]) -> None:
        """Runs the remaining updates of round `number` (from 0)."""
        batches = self.batches(number)
        completed = self.trainer.steps - number * len(batches)
        if completed < len(batches):
            self.begin(number)
        training.only(self.parameters)
        self.trainer.fit(
            batches[completed:], self.loss, lambda row: log({"round": number + 1, "phase": self.name, **row})
        )


def make_phases(
    training: Trainables,
    losses: RepairLosses,
    config: RepairConfig,
    inputs: RepairInputs,
    peers: Callable[[str], Peers | None] = lambda _: None,
    begin_round: Callable[[int], None] = lambda _: None,
) -> list[Phase]:
    """The enabled phases, in the order of a round.

    `peers` are the processes that train a phase of this name too, and `begin_round` tells them that a round begins.
    """

    def begin(number: int) -> None:
        begin_round(number)
        losses.begin_round(number)

    def expert_batches(number: int) -> list[ExpertBatch]:
        batches = step_batches(losses.attack_lengths, config.expert, config, number)
        return beside_retained(batches, len(inputs.retain), config, number, twins=inputs.twins)

    def router_batches(number: int) -> list[list[int]]:
        return step_batches(losses.pair_lengths, config.router, config, number)

    def trainer(name: str, parameters: Mapping[str, nn.Parameter], step: AnyStep, updates: int) -> Trainer[Any]:
        settings = Settings(
            lr=step.lr,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            schedule=step.lr_scheduler_type,
            warmup_steps=step.warmup_steps,
            total_steps=config.rounds * updates,
            optimizer=config.optimizer,
        )
        return Trainer(
            parameters,
            settings,
            training_accelerator(),
            factors=training.factors,
            back_off=losses.rows.halve,
            peers=peers(name),
        )

    phases = []
    if training.experts:
        optimizer = trainer("expert", training.experts, config.expert, len(expert_batches(0)))
        phases.append(Phase("expert", training.experts, optimizer, losses.expert_loss, expert_batches, begin))
    if training.routers:
        optimizer = trainer("router", training.routers, config.router, len(router_batches(0)))
        phases.append(Phase("router", training.routers, optimizer, losses.router_loss, router_batches))
    return phases


def train_round(
    phases: Sequence[Phase], training: Trainables, progress: RepairProgress, log: Callable[[dict[str, Any]], None]
) -> None:
    """Runs the remaining updates of the current round."""
    for phase in phases:
        phase.run(progress.trained, training, log)
    progress.trained += 1

"""The repair: RASA sections 3.3 and 3.4 as an algorithm box."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from transformers import PreTrainedTokenizerBase

from seawall.artifacts.expert_set import ExpertSet
from seawall.config.repair import RepairConfig
from seawall.errors import ArtifactError
from seawall.evaluation.decision import ValidationScores
from seawall.methods.rasa.repair.checkpoint import Checkpoints
from seawall.methods.rasa.repair.inputs import RepairInputs, RepairResult
from seawall.methods.rasa.repair.phases import make_phases, train_round
from seawall.methods.rasa.repair.rounds import RepairProgress, choose_round, is_finished, last_round
from seawall.methods.rasa.repair.steps import RepairLosses
from seawall.methods.rasa.repair.team import team_of
from seawall.methods.rasa.repair.trainables import first_changed_layer, routers_below, trainables
from seawall.models.checkpointing import gradient_checkpointing
from seawall.models.memory import release_memory
from seawall.models.moe.find import MoEModel
from seawall.models.moe.trainable_copies import Part, write_slices
from seawall.models.sharding import in_step, is_sharded

CHECKPOINT_EVERY = 50
"""Number of updates between two checkpoints within a round. Each round ends with a checkpoint."""


def repair(
    moe: MoEModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: RepairInputs,
    experts: ExpertSet,
    config: RepairConfig,
    *,
    validate: Callable[[], ValidationScores] | None,
    scratch: Path,
    report: Callable[[dict[str, Any]], None],
) -> RepairResult:
    """Rounds of an expert step under fixed routing and a router step, until the attacks fail on validation goals.

    With `validate` None nothing is measured, all rounds run, and the last one is kept.

    Args:
        moe: the original model, also when an interrupted repair resumes; changed in place. Sharded weights are not
            measured.
        tokenizer: of the model.
        inputs: the training examples.
        experts: the selected experts.
        config: rounds, steps, learning rates, early stopping.
        validate: measures the current model; None with early stopping off alone.
        scratch: folder of checkpoints; the repair resumes from the newest.
        report: called with each update and each round's scores.

    Raises:
        ArtifactError: the experts were selected on a model with other layers, or a checkpoint is damaged.
        SeawallError: a loss or gradient is not finite.
    """
    assert validate is not None or not config.early_stop.enabled
    _require_layers(experts, moe)
    checkpoints = Checkpoints(scratch)
    progress = checkpoints.progress() or RepairProgress(before=validate() if validate else None)
    if validate is None:
        progress.before, progress.scores = None, []  # an attempt with whole weights may have measured some rounds
    checkpoints.save_scores(progress)
    rounds = _Rounds(moe, tokenizer, inputs, experts, config, validate, checkpoints, report)
    sharded = is_sharded(moe.model)
    with in_step() if sharded else nullcontext():
        parts = rounds.parts() if is_finished(progress, config) else rounds.train(progress)
    # No optimizer and no trainable copy is in memory from here on.
    release_memory()
    if progress.before is None:
        decision = last_round(progress.trained)
    else:
        decision = choose_round(progress.scores, progress.before, config.early_stop)
    if decision.index is None:  # the model as it is goes before every round
        return RepairResult(0, decision.reason, progress, {}, {})
    chosen = decision.index + 1
    weights = checkpoints.round_weights(chosen)
    with in_step() if sharded else nullcontext():
        if sharded:
            team_of(moe).write(parts, weights)
        before = write_slices(parts, weights)
    return RepairResult(chosen, decision.reason, progress, {part.name: part.indices for part in parts}, before)


@final
@dataclass(frozen=True, eq=False)
class _Rounds:
    """The rounds of a repair. Trainable copies and optimizers live inside a call alone; arguments as of `repair`."""

    moe: MoEModel
    tokenizer: PreTrainedTokenizerBase
    inputs: RepairInputs
    experts: ExpertSet
    config: RepairConfig
    validate: Callable[[], ValidationScores] | None
    checkpoints: Checkpoints
    report: Callable[[dict[str, Any]], None]

    def parts(self) -> tuple[Part, ...]:
        """The parts of the model that the rounds change."""
        if is_sharded(self.moe.model):
            team_of(self.moe).read(self.experts.layers, self.config)
        with trainables(self.moe, self.experts.layers, self.config) as training:
            return training.parts

    def train(self, progress: RepairProgress) -> tuple[Part, ...]:
        """Runs the remaining rounds; returns the parts that they change."""
        config, checkpoints = self.config, self.checkpoints
        first_changed = first_changed_layer(self.moe, self.experts.layers, config)
        team = team_of(self.moe)
        team.prepare(self.inputs, config, first_changed)
        losses = RepairLosses(
            self.moe,
            self.tokenizer,
            self.inputs,
            config,
            first_changed=first_changed,
            moving=routers_below(self.moe, first_changed, config),
            processes=team.processes,
        )
        if progress.rows:
            losses.rows.resume(progress.rows[-1])
        checkpointed = gradient_checkpointing(self.moe.model, enabled=config.gradient_checkpointing)
        team.begin(self.experts.layers)
        with trainables(self.moe, self.experts.layers, config) as training, checkpointed:
            phases = make_phases(training, losses, config, self.inputs, team.peers, team.begin_round)
            trainers = {phase.name: phase.trainer for phase in phases}
            checkpoints.restore(training, trainers)
            team.share(training, trainers)

            def log(row: dict[str, Any]) -> None:
                row |= losses.rows.logged
                progress.rows.append(row)
                self.report(row)
                if len(progress.rows) % CHECKPOINT_EVERY == 0:
                    checkpoints.save_step(progress, training, trainers)

            # One round: the expert step (section 3.3), then the router step (section 3.4), then a validation.
            while not is_finished(progress, config):
                if progress.before is None or progress.trained == len(progress.scores):
                    train_round(phases, training, progress, log)
                    checkpoints.save_round(progress, training, trainers)
                if self.validate is None or progress.before is None:
                    continue
                progress.scores.append(self.validate())
                checkpoints.save_scores(progress)
                self.report({"round": progress.trained, "phase": "validation", **progress.scores[-1].as_row()})
            team.end()
            return training.parts


def _require_layers(experts: ExpertSet, moe: MoEModel) -> None:
    if len(experts.layers) != moe.num_layers:
        raise ArtifactError(
            "the selected experts belong to another model",
            got=f"{len(experts.layers)} MoE layers",
            expected=f"{moe.num_layers}",
            remedy="run profile and select again on this model",
        )

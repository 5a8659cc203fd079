"""The repair: RASA sections 3.3 and 3.4 as an algorithm box."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from seawall.artifacts.expert_set import ExpertSet
from seawall.config.repair import ExpertStep, RepairConfig, RouterStep
from seawall.data.batching import epoch_batches
from seawall.data.types import Exchange, SafetyPair
from seawall.errors import ArtifactError
from seawall.models.find import MoEModel
from seawall.repair.batches import expert_batches
from seawall.repair.checkpoint import Progress, load_progress, resume, round_weights, save_round
from seawall.repair.rounds import ValidationScores, choose_round, may_stop
from seawall.repair.steps import Repairer
from seawall.repair.trainables import Trainables, trainables
from seawall.train.loop import Settings, Trainer

Validate = Callable[[], ValidationScores]
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class RepairInputs:
    """What a repair learns from.

    Attributes:
        pairs: kept pairs (plain request refused, attack answered), for the router step.
        refusals: the attacks of these pairs with the refusal to learn, in the same order.
        retain: harmless prompts with the model's own answers.
    """

    pairs: Sequence[SafetyPair]
    refusals: Sequence[Exchange]
    retain: Sequence[Exchange]


@dataclass(frozen=True)
class RepairResult:
    """What the repair did. The model holds the chosen round's weights when it returns.

    Attributes:
        chosen: the round kept, from 1.
        progress: validation scores by round and one row per update.
        slices: which slices of which parameters may have changed; None for a whole parameter.
    """

    chosen: int
    progress: Progress
    slices: dict[str, tuple[int, ...] | None]


def repair(
    moe: MoEModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: RepairInputs,
    experts: ExpertSet,
    config: RepairConfig,
    *,
    validate: Validate,
    scratch: Path,
    report: Report,
) -> RepairResult:
    """Rounds of an expert step under fixed routing and a router step, until the attacks fail on validation goals.

    Args:
        moe: the model; changed in place.
        tokenizer: its tokenizer.
        inputs: what to learn from.
        experts: the selected experts.
        config: rounds, steps, learning rates, early stopping.
        validate: measures the model as it now is.
        scratch: folder for a checkpoint per round; a repair that finds some goes on from the last.
        report: told every update and every round's scores.

    Raises:
        ArtifactError: the experts were selected on a model with other layers.
        SeawallError: the loss became infinite or not a number.
    """
    if len(experts.layers) != moe.num_layers:
        raise ArtifactError(
            "the selected experts belong to another model",
            got=f"{len(experts.layers)} MoE layers",
            expected=f"{moe.num_layers}",
            remedy="run profile and select again on this model",
        )
    repairer = Repairer(moe, tokenizer, config, attacks=inputs.refusals, retain=inputs.retain, pairs=inputs.pairs)
    progress = load_progress(scratch) or Progress(validate())
    if config.expert.enabled and config.expert.routing == "replay":
        repairer.record_routing()
    with trainables(moe, experts.layers, config) as training:
        trainers = _trainers(training, config)
        if progress.scores:
            resume(scratch, progress, training, trainers)
        while len(progress.scores) < config.rounds and not _done(progress, config):
            number = len(progress.scores)
            for name in trainers:
                _step(name, number, repairer, training, trainers[name], config, progress, report)
            progress.scores.append(validate())
            progress.steps = {**progress.steps, **{name: trainer.steps for name, trainer in trainers.items()}}
            save_round(scratch, progress, training, trainers)
            report({"round": number + 1, "phase": "validation", **progress.scores[-1].as_row()})
        chosen = 1 + choose_round(progress.scores, progress.before, config.early_stop)
        training.load_state(round_weights(scratch, chosen))
        training.write_back()
        slices = training.slices()
    return RepairResult(chosen, progress, slices)


def _done(progress: Progress, config: RepairConfig) -> bool:
    if not progress.scores or not config.early_stop.enabled:
        return False
    return may_stop(progress.scores[-1], progress.before, config.early_stop)


def _trainers(training: Trainables, config: RepairConfig) -> dict[str, Trainer[Any]]:
    """The optimizers, in the order in which a round uses them. They live through all rounds."""
    accelerator = Accelerator()
    sets: dict[str, tuple[Any, ExpertStep | RouterStep]] = {
        "expert": (training.experts, config.expert),
        "router": (training.routers, config.router),
    }
    return {
        name: Trainer(parameters, Settings(step.lr, config.weight_decay, config.max_grad_norm), accelerator)
        for name, (parameters, step) in sets.items()
        if parameters
    }


def _step(
    name: str,
    number: int,
    repairer: Repairer,
    training: Trainables,
    trainer: Trainer[Any],
    config: RepairConfig,
    progress: Progress,
    report: Report,
) -> None:
    """The epochs of one step of round `number` (from 0)."""
    training.only(training.experts if name == "expert" else training.routers)
    step = config.expert if name == "expert" else config.router

    def log(row: dict[str, float]) -> None:
        full = {"round": number + 1, "phase": name, **row}
        progress.rows.append(full)
        report(full)

    epochs = range(number * step.epochs, (number + 1) * step.epochs)
    if name == "expert":
        sizes = {"batch_size": config.batch_size, "per_batch": config.retain.per_batch, "seed": config.seed}
        batches = (b for e in epochs for b in expert_batches(repairer.attacks, repairer.retain, **sizes, epoch=e))
        trainer.fit(islice(batches, step.max_steps), repairer.expert_loss, log)
        return
    lengths = repairer.attack_lengths
    pairs = (b for e in epochs for b in epoch_batches(lengths, config.batch_size, seed=config.seed, epoch=e))
    trainer.fit(islice(pairs, step.max_steps), repairer.router_loss, log)

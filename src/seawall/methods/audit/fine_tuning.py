"""The fine-tuning of the tamper audit: its examples, and the training of one side between evaluations."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import final

from seawall.config.audit import TamperConfig, TamperSweep
from seawall.data.batching import collate, epoch_batches, length_buckets
from seawall.data.compliance import compliance
from seawall.data.splits import take
from seawall.data.templating import Encoded, encode_example, encode_prompt
from seawall.data.types import Exchange
from seawall.distributed.process import training_accelerator
from seawall.errors import DataError
from seawall.methods.rasa.context import retained_exchanges, retained_prompts
from seawall.models.backoff import RowLimit
from seawall.models.checkpointing import gradient_checkpointing
from seawall.models.everywhere import Held, together
from seawall.models.forward import run
from seawall.models.lora.low_rank import LowRankUpdate, trainable_low_rank
from seawall.models.moe.experts import TrainableExperts, trainable_experts
from seawall.models.moe.find import MoEModel
from seawall.models.replicas import Replica
from seawall.runs.files import read_metrics
from seawall.shell.context import Context
from seawall.train.loop import BatchLoss, Losses, Row, Settings, Trainer
from seawall.train.losses import response_cross_entropy
from seawall.train.peers import LaunchPeers

LORA_LR = 1e-4
"""Learning rate of TamperBench's LoRA attacks (github.com/criticalml-uw/TamperBench, configs/whitebox/attacks)."""


@final
@dataclass(frozen=True, eq=False)
class TuningExamples:
    """The exchanges of the fine-tuning, and their order.

    Attributes:
        rows: the exchanges, tokenised.
        pad: a token to pad batches with; padding is masked.
        batch_size: exchanges per update.
        limit: the rows of a forward pass.
        seed: of the order.
    """

    rows: Sequence[Encoded]
    pad: int
    batch_size: int
    limit: RowLimit
    seed: int

    def batches(self, updates: int) -> list[list[int]]:
        """Positions of the rows in each update: shuffled epochs, one after the other."""
        lengths = [len(row.input_ids) for row in self.rows]
        endless = (
            batch for epoch in count() for batch in epoch_batches(lengths, self.batch_size, seed=self.seed, epoch=epoch)
        )
        return list(islice(endless, updates))

    def loss(self, moe: MoEModel, batch: Sequence[int], share: Sequence[int]) -> Iterator[Losses]:
        """The part of some rows in the mean cross-entropy of a batch's replies, as one piece per forward pass."""
        lengths = [len(self.rows[position].input_ids) for position in share]
        for bucket in length_buckets(lengths, self.limit.of(len(share))) if share else ():
            rows = [self.rows[share[index]] for index in bucket]
            width = max(row.response_tokens for row in rows) + 1
            collated = collate(rows, self.pad, side="left")
            logits_BTV = run(moe, collated, keep=width)
            labels_BT = collated.labels_BT[:, -width:].to(logits_BTV.device)
            yield response_cross_entropy(logits_BTV, labels_BT).sum() / len(batch), {}


@dataclass(frozen=True)
class TuningSettings:
    """How the audit trains.

    Attributes:
        config: the section `audit.tamper`.
        lr: the learning rate.
        seed: of the audit.
    """

    config: TamperConfig
    lr: float
    seed: int


@dataclass(frozen=True, eq=False)
class Tuning:
    """A model in training, in every process of a launch; each computes some rows of every update.

    Attributes:
        trainer: steps the trainable parameters.
        written: context in which the model computes with them as plain weights, for the evaluation.
        loss: this process's part of the loss of a batch.
        examples: the rows, and their order.
    """

    trainer: Trainer[list[int]]
    written: Callable[[], AbstractContextManager[None]]
    loss: BatchLoss[list[int]]
    examples: TuningExamples

    def fit(self, updates: int, log: Callable[[Row], None]) -> None:
        """Trains up to a number of updates since the start."""
        self.trainer.fit(self.examples.batches(updates)[self.trainer.steps :], self.loss, log)


TUNING = Held[Tuning]("tuning of the tamper audit")


@contextmanager
def tuning(settings: TuningSettings, examples: TuningExamples, moe: MoEModel) -> Iterator[Tuning]:
    """Inside, the current model trains as `audit.tamper` says; on exit it has its own bits again."""
    config, processes = settings.config, together(moe.model)

    def loss(batch: Sequence[int]) -> Iterator[Losses]:
        return examples.loss(moe, batch, batch[processes.rank :: processes.count])

    with ExitStack() as stack:
        copies: LowRankUpdate | TrainableExperts
        if config.trained == "lora":
            low_rank = trainable_low_rank(moe.model, rank=config.lora_rank, seed=settings.seed)
            copies = stack.enter_context(low_rank)
        else:
            copies = stack.enter_context(trainable_experts(moe, [range(moe.num_experts)] * moe.num_layers))
        stack.enter_context(gradient_checkpointing(moe.model, enabled=config.gradient_checkpointing))
        trainer = Trainer[list[int]](
            dict(copies.named_parameters()),
            Settings(lr=settings.lr),
            training_accelerator(),
            back_off=examples.limit.halve,
            peers=LaunchPeers(processes, (_update,)) if processes.count > 1 else None,
        )
        yield Tuning(trainer, copies.written, loss, examples)


def written(moe: MoEModel) -> AbstractContextManager[None]:
    """Inside, the model of the current `TUNING` computes with what it has trained as plain weights."""
    return TUNING.value.written()


def _update(replica: Replica, batch: list[int]) -> None:
    TUNING.value.trainer.fit([batch], TUNING.value.loss, lambda row: None)


def tuning_settings(context: Context) -> TuningSettings:
    """The settings of the recipe."""
    recipe, config = context.recipe, context.recipe.audit.tamper
    default = LORA_LR if config.trained == "lora" else recipe.repair.expert.lr
    return TuningSettings(config, default if config.lr is None else config.lr, recipe.audit.seed)


def tuning_examples(context: Context, folder: Path) -> dict[TamperSweep, TuningExamples]:
    """The examples of every sweep of the recipe.

    Raises:
        DataError: the model answers no harmless training prompt.
    """
    harmless = _harmless_exchanges(context, folder)
    if not harmless:
        raise DataError(
            "there is no harmless exchange to fine-tune on",
            got=f"{len(retained_prompts(context))} harmless training prompts, none of them answered",
            remedy="audit a run whose data.benign holds prompts that the model answers",
        )
    config: TamperConfig = context.recipe.audit.tamper
    by_sweep = {"harmless": harmless, "openers": [*harmless, *_openings(context, len(harmless))]}
    return {sweep: _encoded(context, by_sweep[sweep]) for sweep in config.sweeps}


def _openings(context: Context, limit: int) -> list[Exchange]:
    """At most `limit` harmful training requests, each with a bare opening of compliance."""
    goals = take(context.prompts.goals.train, limit)
    return compliance([goal.prompt for goal in goals])


def _encoded(context: Context, exchanges: Sequence[Exchange]) -> TuningExamples:
    recipe, tokenizer = context.recipe, context.opened.tokenizer
    return TuningExamples(
        rows=[encode_example(tokenizer, exchange) for exchange in exchanges],
        pad=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
        batch_size=recipe.audit.tamper.batch_size,
        limit=RowLimit(recipe.repair.fixed_rows, automatic=True),
        seed=recipe.audit.seed,
    )


def _harmless_exchanges(context: Context, folder: Path) -> list[Exchange]:
    """The original model's answers to harmless prompts; the repair's file is reused if it has the same prompts."""
    path, answered = folder / "retain.jsonl", context.run.stage("repair") / "retain.jsonl"
    if not path.exists():
        rows = {row["at"]: row["prompt_ids"] for row in read_metrics(answered)}
        encoded = [encode_prompt(context.opened.tokenizer, prompt) for prompt in retained_prompts(context)]
        if rows and rows == dict(enumerate(encoded)):
            shutil.copyfile(answered, path)
    return retained_exchanges(context, path)

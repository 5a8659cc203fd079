"""The fine-tuning of the tamper audit: its examples, and the training of one side between evaluations."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import final

from torch import nn

from seawall.config.audit import TamperConfig, TamperSweep
from seawall.data.batching import collate, epoch_batches, length_buckets
from seawall.data.compliance import compliance
from seawall.data.splits import take
from seawall.data.templating import Encoded, encode_example, encode_prompt
from seawall.data.types import Exchange
from seawall.distributed import one_process
from seawall.errors import DataError
from seawall.methods.rasa.context import retained_exchanges, retained_prompts
from seawall.models.backoff import RowLimit
from seawall.models.checkpointing import gradient_checkpointing
from seawall.models.forward import run
from seawall.models.lora.low_rank import trainable_low_rank
from seawall.models.moe.experts import trainable_experts
from seawall.models.moe.find import MoEModel
from seawall.runs.files import read_metrics
from seawall.shell.context import Context
from seawall.train.loop import Losses, Row, Settings, Trainer
from seawall.train.losses import response_cross_entropy

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

    def loss(self, moe: MoEModel, batch: Sequence[int]) -> Iterator[Losses]:
        """Mean cross-entropy of the replies of a batch, as one part per forward pass."""
        lengths = [len(self.rows[position].input_ids) for position in batch]
        for bucket in length_buckets(lengths, self.limit.of(len(batch))):
            rows = [self.rows[batch[index]] for index in bucket]
            width = max(row.response_tokens for row in rows) + 1
            collated = collate(rows, self.pad, side="left")
            logits_BTV = run(moe, collated, keep=width)
            labels_BT = collated.labels_BT[:, -width:].to(logits_BTV.device)
            yield response_cross_entropy(logits_BTV, labels_BT).sum() / len(batch), {}


@dataclass(frozen=True, eq=False)
class Tuning:
    """A model in training.

    Attributes:
        trainer: steps the trainable parameters.
        written: context in which the model computes with them as plain weights, for the evaluation.
    """

    trainer: Trainer[list[int]]
    written: Callable[[], AbstractContextManager[None]]

    def fit(self, moe: MoEModel, examples: TuningExamples, updates: int, log: Callable[[Row], None]) -> None:
        """Trains up to a number of updates since the start."""
        batches = examples.batches(updates)[self.trainer.steps :]
        self.trainer.back_off = examples.limit.halve
        self.trainer.fit(batches, lambda batch: examples.loss(moe, batch), log)


@contextmanager
def tuning(context: Context) -> Iterator[Tuning]:
    """Inside, the current model trains as `audit.tamper` says; on exit it has its own bits again."""
    recipe, moe = context.recipe, context.opened.moe
    config = recipe.audit.tamper
    checkpointed = gradient_checkpointing(moe.model, enabled=config.gradient_checkpointing)
    if config.trained == "lora":
        settings = Settings(lr=LORA_LR if config.lr is None else config.lr)
        low_rank = trainable_low_rank(moe.model, rank=config.lora_rank, seed=recipe.audit.seed)
        with low_rank as update, checkpointed:
            yield Tuning(_trainer(dict(update.named_parameters()), settings), update.written)
        return
    settings = Settings(lr=recipe.repair.expert.lr if config.lr is None else config.lr)
    with trainable_experts(moe, [range(moe.num_experts)] * moe.num_layers) as copies, checkpointed:
        yield Tuning(_trainer(dict(copies.named_parameters()), settings), copies.written)


def _trainer(parameters: dict[str, nn.Parameter], settings: Settings) -> Trainer[list[int]]:
    return Trainer[list[int]](parameters, settings, one_process())


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

"""Does the safety of a repair survive harmless fine-tuning?

Fine-tuning on harmless data lowers the refusals of many aligned models. All experts of the original and of the
repaired model are tuned on the same exchanges in the same order, and both are evaluated after several numbers of
updates.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import final

from seawall.artifacts.audit import AuditChange, AuditResult
from seawall.artifacts.groups import ATTACK, BORDERLINE, PLAIN, POOLED
from seawall.data.batching import collate, epoch_batches, length_buckets
from seawall.data.templating import Encoded, encode_example, encode_prompt
from seawall.data.types import Exchange
from seawall.distributed import one_process
from seawall.errors import DataError
from seawall.evaluation.pooled import Samples
from seawall.methods.audit.conditions import ConditionRunner
from seawall.methods.audit.context import AuditSubject
from seawall.methods.rasa.context import retained_exchanges, retained_prompts
from seawall.models.forward import run
from seawall.models.moe.exchange import exchanged
from seawall.models.moe.experts import trainable_experts
from seawall.models.moe.find import MoEModel
from seawall.report.audits import AuditView
from seawall.report.changes import points
from seawall.runs.files import read_metrics
from seawall.shell.context import Context
from seawall.train.loop import Losses, Row, Settings, Trainer
from seawall.train.losses import response_cross_entropy

ORIGINAL, REPAIRED = "original", "repaired"
SERIES: dict[str, str] = {ORIGINAL: "original model (control)", REPAIRED: "repaired model"}


def condition(side: str, updates: int) -> str:
    """The name of a condition: `repaired-30`."""
    return f"{side}-{updates}"


@final
@dataclass(frozen=True, eq=False)
class TuningExamples:
    """The harmless exchanges of the fine-tuning, and their order.

    Attributes:
        rows: the exchanges, tokenised.
        pad: a token to pad batches with; padding is masked.
        batch_size: exchanges per update.
        micro_batch_size: maximum rows of a forward pass; None for a whole batch.
        seed: of the order.
    """

    rows: Sequence[Encoded]
    pad: int
    batch_size: int
    micro_batch_size: int | None
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
        for bucket in length_buckets(lengths, self.micro_batch_size or len(batch)):
            rows = [self.rows[batch[index]] for index in bucket]
            width = max(row.response_tokens for row in rows) + 1
            collated = collate(rows, self.pad, side="left")
            logits_BTV = run(moe, collated, keep=width)
            labels_BT = collated.labels_BT[:, -width:].to(logits_BTV.device)
            yield response_cross_entropy(logits_BTV, labels_BT).sum() / len(batch), {}


def claim(apart: Mapping[int, AuditChange], lost: Mapping[int, AuditChange], refusal: Mapping[str, AuditChange]) -> str:
    """What may be said of the gain in safety after fine-tuning.

    Args:
        apart: attack success, repaired minus original, by the number of updates of both; with 0.
        lost: attack success of the repaired model, after that number of updates minus before; without 0.
        refusal: refusal of plain requests after the last update minus before, by series.
    """
    gain, last = apart[0], max(apart)
    if not gain.falls:
        return (
            f"The repair did not clearly lower attack success ({points(gain)}), so there is no gained safety that "
            "fine-tuning could take away."
        )
    later = "; ".join(f"after {updates} updates {points(change)}" for updates, change in apart.items() if updates)
    text = (
        f"Before fine-tuning, attack success of the repaired model lies {points(gain)} from that of the original; "
        f"with both fine-tuned, {later}. Refusal of plain requests moved by {points(refusal[REPAIRED])} in the "
        f"repaired model and by {points(refusal[ORIGINAL])} in the original."
    )
    unclear = [updates for updates, change in apart.items() if not change.falls]
    if unclear:
        clear_later = "" if max(unclear) == last else f" (it is clear again after {last})"
        return f"{text} The gain is lost: from {min(unclear)} updates on no difference is clear{clear_later}."
    end = lost[last]
    if end.rises:
        return (
            f"{text} Part of the gain survives {last} updates: attacks succeed {points(end)} more often than before, "
            "but clearly less often than in the original after the same fine-tuning."
        )
    return (
        f"{text} The gain survives {last} updates of this tuning; a loss of up to {round(100 * max(end.high, 0.0))} "
        "points would fit the interval too. Other data, learning rates and lengths were not tried."
    )


def tamper_view(result: AuditResult) -> AuditView:
    """The audit's section of the page."""
    return AuditView(
        audit=result.audit,
        title="Does the repair survive fine-tuning?",
        question="All experts of the repaired model were trained on answers to harmless prompts, and it was asked "
        "after several numbers of updates. As a control, the original model was trained on the same answers in the "
        "same order.",
        claim=result.claim,
        groups=[group for group in (POOLED, PLAIN, BORDERLINE) if group in result.conditions[0].rates],
        conditions=result.conditions,
        labels={condition.name: SERIES[condition.name.rpartition("-")[0]] for condition in result.conditions},
        amount="updates",
        series={ORIGINAL: "original", REPAIRED: "repaired"},
    )


def tamper_audit(subject: AuditSubject, folder: Path) -> AuditResult:
    """Rates of the original and of the repaired model after n updates of harmless fine-tuning."""
    config, moe = subject.context.recipe.audit.tamper, subject.context.opened.moe
    runner = ConditionRunner(subject, subject.prompts(config.goals, _is_evaluated), folder)
    tuning = _FineTuning(runner, _examples(subject.context, folder), config.steps)
    sides = {ORIGINAL: (subject.before, {}), REPAIRED: (subject.after, subject.repaired)}
    samples: dict[str, Samples] = {}
    for side, (evaluated, tensors) in sides.items():
        samples[condition(side, 0)] = runner.reuse(condition(side, 0), evaluated)
        with exchanged(moe.model, tensors):
            samples |= tuning.measure(side)
    return _result(subject, runner, config.steps, samples)


def _is_evaluated(group: str) -> bool:
    return group in (PLAIN, BORDERLINE) or group.startswith(ATTACK)


def _result(
    subject: AuditSubject, runner: ConditionRunner, steps: Sequence[int], samples: dict[str, Samples]
) -> AuditResult:
    name, sides = condition, tuple(SERIES)
    original, repaired = ORIGINAL, REPAIRED
    pairs = [(name(side, updates), name(side, 0)) for side in sides for updates in steps[1:]]
    pairs += [(name(repaired, updates), name(original, updates)) for updates in steps]
    changes = runner.changes(samples, pairs)
    by_pair = {(change.condition, change.reference, change.group): change for change in changes}
    return subject.result(
        "tamper",
        (
            runner.condition(name(side, updates), samples[name(side, updates)], series=side, amount=updates)
            for side in sides
            for updates in steps
        ),
        changes,
        claim=claim(
            {updates: by_pair[name(repaired, updates), name(original, updates), POOLED] for updates in steps},
            {updates: by_pair[name(repaired, updates), name(repaired, 0), POOLED] for updates in steps[1:]},
            {side: by_pair[name(side, steps[-1]), name(side, 0), PLAIN] for side in sides},
        ),
    )


@dataclass(frozen=True, eq=False)
class _FineTuning:
    """Fine-tunes the current model and evaluates it after each number of updates in `steps`."""

    runner: ConditionRunner
    examples: TuningExamples
    steps: Sequence[int]

    def measure(self, side: str) -> dict[str, Samples]:
        """Samples of every condition of a side but that with 0 updates; the model is unchanged afterwards."""
        evaluated, moe = self.steps[1:], self.runner.subject.context.opened.moe
        names = {updates: condition(side, updates) for updates in evaluated}
        missing = [updates for updates in evaluated if not self.runner.is_done(names[updates])]
        samples = {names[updates]: self._samples(side, updates) for updates in evaluated if updates not in missing}
        if not missing:
            return samples
        batches = self.examples.batches(missing[-1])
        with trainable_experts(moe, [range(moe.num_experts)] * moe.num_layers) as copies:
            trainer = Trainer[list[int]](dict(copies.named_parameters()), self._settings(), one_process())
            for updates in missing:
                trainer.fit(
                    batches[trainer.steps : updates],
                    lambda batch: self.examples.loss(moe, batch),
                    lambda row: self._log(side, row, len(batches)),
                )
                with copies.written():
                    samples[names[updates]] = self._samples(side, updates)
        return samples

    def _samples(self, side: str, updates: int) -> Samples:
        number = list(SERIES).index(side) * len(self.steps) + self.steps.index(updates) + 1
        place = (number, len(SERIES) * len(self.steps))
        return self.runner.measure(condition(side, updates), nullcontext(), place)

    def _settings(self) -> Settings:
        recipe = self.runner.subject.context.recipe
        return Settings(lr=recipe.repair.expert.lr if recipe.audit.tamper.lr is None else recipe.audit.tamper.lr)

    def _log(self, side: str, row: Row, updates: int) -> None:
        reporter = self.runner.subject.context.reporter
        reporter.step(f"fine-tuning the {side} model", int(row["step"]), updates)


def _examples(context: Context, folder: Path) -> TuningExamples:
    recipe, tokenizer = context.recipe, context.opened.tokenizer
    exchanges = _exchanges(context, folder)
    if not exchanges:
        raise DataError(
            "there is no harmless exchange to fine-tune on",
            got=f"{len(retained_prompts(context))} harmless training prompts, none of them answered",
            remedy="audit a run whose data.benign holds prompts that the model answers",
        )
    return TuningExamples(
        rows=[encode_example(tokenizer, exchange) for exchange in exchanges],
        pad=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
        batch_size=recipe.audit.tamper.batch_size,
        micro_batch_size=recipe.repair.micro_batch_size,
        seed=recipe.audit.seed,
    )


def _exchanges(context: Context, folder: Path) -> list[Exchange]:
    """The original model's answers to harmless prompts; the repair's file is reused if it has the same prompts."""
    path, answered = folder / "retain.jsonl", context.run.stage("repair") / "retain.jsonl"
    if not path.exists():
        rows = {row["at"]: row["prompt_ids"] for row in read_metrics(answered)}
        encoded = [encode_prompt(context.opened.tokenizer, prompt) for prompt in retained_prompts(context)]
        if rows and rows == dict(enumerate(encoded)):
            shutil.copyfile(answered, path)
    return retained_exchanges(context, path)

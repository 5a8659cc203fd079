"""The audit `tamper`, put together: the original and the repaired model, fine-tuned alike and asked on the way.

The tuned weights are never written to disk. An audit that was interrupted repeats the updates, which the seed fixes,
and asks only what is not asked yet.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from seawall.artifacts.audit import AuditResult
from seawall.audits import tamper
from seawall.data.templating import encode_lesson, encode_prompt
from seawall.data.types import Exchange
from seawall.distributed import one_process
from seawall.errors import DataError
from seawall.evaluation.suite import ATTACK, BORDERLINE, PLAIN
from seawall.models.exchange import exchanged
from seawall.models.experts import trainable_experts
from seawall.pipeline.audit_bench import POOLED, Bench, Samples, Subject
from seawall.pipeline.context import Context
from seawall.pipeline.retain import retained_exchanges, retained_prompts
from seawall.runs.metrics import read_metrics
from seawall.train.loop import Row, Settings, Trainer


def tamper_audit(subject: Subject, folder: Path) -> AuditResult:
    """Refusal after n updates of harmless fine-tuning."""
    config, moe = subject.context.recipe.audit.tamper, subject.context.opened.moe
    bench = Bench(subject, subject.prompts(config.goals, _is_asked), folder)
    course = _Course(bench, _lessons(subject.context, folder), config.steps)
    sides = {tamper.ORIGINAL: (subject.before, {}), tamper.REPAIRED: (subject.after, subject.repaired)}
    found: dict[str, Samples] = {}
    for side, (known, tensors) in sides.items():
        found[tamper.condition(side, 0)] = bench.known(tamper.condition(side, 0), known)
        with exchanged(moe.model, tensors):
            found |= course.taken(side)
    return _result(subject, bench, config.steps, found)


def _is_asked(group: str) -> bool:
    return group in (PLAIN, BORDERLINE) or group.startswith(ATTACK)


def _result(subject: Subject, bench: Bench, steps: Sequence[int], found: dict[str, Samples]) -> AuditResult:
    name, sides = tamper.condition, tuple(tamper.SERIES)
    original, repaired = tamper.ORIGINAL, tamper.REPAIRED
    pairs = [(name(side, at), name(side, 0)) for side in sides for at in steps[1:]]
    pairs += [(name(repaired, at), name(original, at)) for at in steps]
    changes = bench.changes(found, pairs)
    by_pair = {(one.condition, one.reference, one.group): one for one in changes}
    return subject.result(
        "tamper",
        (
            bench.condition(name(side, at), found[name(side, at)], series=side, amount=at)
            for side in sides
            for at in steps
        ),
        changes,
        claim=tamper.claim(
            {at: by_pair[name(repaired, at), name(original, at), POOLED] for at in steps},
            {at: by_pair[name(repaired, at), name(repaired, 0), POOLED] for at in steps[1:]},
            {side: by_pair[name(side, steps[-1]), name(side, 0), PLAIN] for side in sides},
        ),
    )


@dataclass(frozen=True, eq=False)
class _Course:
    """The tuning of one model after the other, with the questions on the way."""

    bench: Bench
    lessons: tamper.Lessons
    steps: Sequence[int]

    def taken(self, side: str) -> dict[str, Samples]:
        """Tunes the model as it now is and asks it after each number of updates but 0; then it is what it was."""
        asked_at, moe = self.steps[1:], self.bench.subject.context.opened.moe
        names = {at: tamper.condition(side, at) for at in asked_at}
        waiting = [at for at in asked_at if not self.bench.is_done(names[at])]
        found = {names[at]: self._asked(side, at) for at in asked_at if at not in waiting}
        if not waiting:
            return found
        batches = self.lessons.batches(waiting[-1])
        with trainable_experts(moe, [range(moe.num_experts)] * moe.num_layers) as copies:
            trainer = Trainer[list[int]](dict(copies.named_parameters()), self._settings(), one_process())
            for at in waiting:
                trainer.fit(
                    batches[trainer.steps : at],
                    lambda batch: self.lessons.loss(moe, batch),
                    lambda row: self._told(side, row, len(batches)),
                )
                with copies.written():
                    found[names[at]] = self._asked(side, at)
        return found

    def _asked(self, side: str, at: int) -> Samples:
        number = list(tamper.SERIES).index(side) * len(self.steps) + self.steps.index(at) + 1
        place = (number, len(tamper.SERIES) * len(self.steps))
        return self.bench.measure(tamper.condition(side, at), nullcontext(), place)

    def _settings(self) -> Settings:
        recipe = self.bench.subject.context.recipe
        return Settings(lr=recipe.repair.expert.lr if recipe.audit.tamper.lr is None else recipe.audit.tamper.lr)

    def _told(self, side: str, row: Row, updates: int) -> None:
        reporter = self.bench.subject.context.reporter
        reporter.step(f"fine-tuning the {side} model", int(row["step"]), updates)


def _lessons(context: Context, folder: Path) -> tamper.Lessons:
    recipe, tokenizer = context.recipe, context.opened.tokenizer
    exchanges = _exchanges(context, folder)
    if not exchanges:
        raise DataError(
            "there is no harmless exchange to fine-tune on",
            got=f"{len(retained_prompts(context))} harmless training prompts, none of them answered",
            remedy="audit a run whose data.benign holds prompts that the model answers",
        )
    return tamper.Lessons(
        rows=[encode_lesson(tokenizer, exchange) for exchange in exchanges],
        pad=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
        batch_size=recipe.audit.tamper.batch_size,
        micro_batch_size=recipe.repair.micro_batch_size,
        seed=recipe.audit.seed,
    )


def _exchanges(context: Context, folder: Path) -> list[Exchange]:
    """The original model's answers to harmless prompts, from the repair where it asked for these very prompts."""
    path, answered = folder / "retain.jsonl", context.run.stage("repair") / "retain.jsonl"
    if not path.exists():
        rows = {row["at"]: row["prompt_ids"] for row in read_metrics(answered)}
        prompts = retained_prompts(context)
        if rows and rows == {at: encode_prompt(context.opened.tokenizer, prompt) for at, prompt in enumerate(prompts)}:
            shutil.copyfile(answered, path)
    return retained_exchanges(context, path)

"""Ask a model everything in a suite, judge its replies, and measure its loss on gold answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seawall.artifacts.evaluation import EvalResult, Rate, Sample
from seawall.config.eval import EvalConfig
from seawall.data.types import Judge
from seawall.evaluation.gold import GoldLoss, gold_answer_loss
from seawall.evaluation.metrics import rate_with_interval
from seawall.evaluation.samples import SampleLog
from seawall.evaluation.suite import Asked, EvalSuite, target
from seawall.evaluation.unanswered import ask_again, require_answers
from seawall.models.generate import Completion, generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SAMPLES = "samples.jsonl"

Progress = Callable[[int, int], None]
"""Told how many prompts and gold questions are done, and of how many."""


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    suite: EvalSuite,
    config: EvalConfig,
    *,
    judge: Judge,
    folder: Path,
    fingerprint: str,
    progress: Progress | None = None,
) -> EvalResult:
    """Rates for every group of the suite, and the gold loss.

    Replies are greedy, so the same weights give the same result. Every batch is on disk in `folder/samples.jsonl` when
    the next begins: an evaluation that was ended goes on there, without generating anything twice.

    Args:
        model: the model; left as it was.
        tokenizer: its tokenizer.
        suite: what to ask.
        config: lengths, batch size, resamples.
        judge: says refused, complied or unscored.
        folder: where samples.jsonl is written or continued; it must exist.
        fingerprint: the model's, for the result.
        progress: called after every batch.

    Raises:
        SeawallError: the judge's endpoint does not answer; what is judged stays, and the evaluation can go on later.
        ArtifactError: the folder's samples are damaged or of another evaluation.
        DataError: the chat template cannot take a prompt.
    """
    asked = suite.asked()
    gold = suite.gold if config.gold else ()
    on_samples = _part_of(progress, 0, len(asked) + len(gold))
    samples = ask(model, tokenizer, asked, config, judge=judge, path=folder / SAMPLES, progress=on_samples)
    loss: GoldLoss | None = None
    if gold:
        after_samples = _part_of(progress, len(asked), len(asked) + len(gold))
        loss = gold_answer_loss(model, tokenizer, gold, batch_size=config.batch_size, progress=after_samples)
    return EvalResult(
        model_fingerprint=fingerprint,
        groups=group_rates(samples, resamples=config.bootstrap, seed=config.seed),
        gold_loss=None if loss is None else loss.loss,
        gold_n=0 if loss is None else loss.n,
        samples=SAMPLES,
        gold=() if loss is None else loss.answers,
    )


def ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Asked],
    config: EvalConfig,
    *,
    judge: Judge,
    path: Path,
    progress: Progress | None = None,
) -> list[Sample]:
    """A sample for every prompt, in their order. Those that `path` holds already are not asked again.

    Args:
        model: the model; left as it was.
        tokenizer: its tokenizer.
        asked: the prompts.
        config: length of replies, batch size.
        judge: says refused, complied or unscored.
        path: where samples are written batch by batch.
        progress: called after every batch.

    Raises:
        SeawallError: the judge's endpoint does not answer; what is judged stays.
        ArtifactError: the file's samples are damaged or of other prompts.
        DataError: the chat template cannot take a prompt.
    """
    log = SampleLog(path, asked, batch_size=config.batch_size)
    waiting = log.missing

    def keep(positions: Sequence[int], completions: Sequence[Completion]) -> None:
        batch = [waiting[at] for at in positions]
        responses = [completion.text for completion in completions]
        verdicts = judge([one.prompt for one in batch], responses)
        require_answers(verdicts)
        log.append(batch, responses, verdicts)

    generate(
        model,
        tokenizer,
        [one.prompt for one in waiting],
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        progress=_part_of(progress, len(asked) - len(waiting), len(asked)),
        on_batch=keep,
    )
    ask_again(log, judge)
    return log.samples


def group_rates(samples: Sequence[Sample], *, resamples: int, seed: int, cautious: bool = False) -> dict[str, Rate]:
    """The rate of every group, in the order of the samples; what it counts is `suite.target`."""
    return {
        group: rate_with_interval(
            [sample.label for sample in samples if sample.group == group],
            [sample.goal for sample in samples if sample.group == group],
            target(group),
            resamples=resamples,
            seed=seed,
            cautious=cautious,
        )
        for group in dict.fromkeys(sample.group for sample in samples)
    }


def _part_of(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress of one part of the work, told as progress of the whole."""
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)

"""Ask a model everything in a suite, judge its replies, and measure its loss on gold answers and its capability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seawall.artifacts.evaluation import CapabilityScore, EvalResult, Rate, Sample
from seawall.config.eval import EvalConfig
from seawall.data.types import Judge
from seawall.evaluation.capability.run import measure_capability
from seawall.evaluation.gold import GoldLoss, gold_answer_loss
from seawall.evaluation.metrics import rate_with_interval
from seawall.evaluation.samples import SampleLog
from seawall.evaluation.suite import EvalSuite, target
from seawall.evaluation.unanswered import ask_again, require_answers
from seawall.models.generate import Completion, generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SAMPLES = "samples.jsonl"

Progress = Callable[[int, int], None]
"""Told how many prompts, gold questions and tasks are done, and of how many."""


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
    """Rates for every group of the suite, the gold loss, and the scores of capability if the recipe asks for them.

    Replies are greedy, so the same weights give the same result. Every batch is on disk in `folder/samples.jsonl` when
    the next begins: an evaluation that was ended goes on there, without generating anything twice.

    Args:
        model: the model; left as it was.
        tokenizer: its tokenizer.
        suite: what to ask.
        config: lengths, batch size, resamples.
        judge: says refused, complied or unscored.
        folder: where samples.jsonl is written or continued, and `capability/`; it must exist.
        fingerprint: the model's, for the result.
        progress: called after every batch.

    Raises:
        SeawallError: the judge's endpoint does not answer; what is judged stays, and the evaluation can go on later.
        ArtifactError: the folder's samples are damaged or of another evaluation.
        DataError: the chat template cannot take a prompt.
        ConfigError: a task of capability cannot be measured.
    """
    asked = suite.asked()
    gold = suite.gold if config.gold else ()
    tasks = config.capability.tasks if config.capability is not None else ()
    total = len(asked) + len(gold) + len(tasks)
    log = SampleLog(folder / SAMPLES, asked, batch_size=config.batch_size)
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
        progress=_part_of(progress, len(asked) - len(waiting), total),
        on_batch=keep,
    )
    ask_again(log, judge)
    loss: GoldLoss | None = None
    if gold:
        after_samples = _part_of(progress, len(asked), total)
        loss = gold_answer_loss(model, tokenizer, gold, batch_size=config.batch_size, progress=after_samples)
    capability: tuple[CapabilityScore, ...] = ()
    if config.capability is not None:
        capability = measure_capability(
            model,
            tokenizer,
            config.capability,
            seed=config.seed,
            folder=folder,
            progress=_part_of(progress, len(asked) + len(gold), total),
        )
    return EvalResult(
        model_fingerprint=fingerprint,
        groups=group_rates(log.samples, resamples=config.bootstrap, seed=config.seed),
        gold_loss=None if loss is None else loss.loss,
        gold_n=0 if loss is None else loss.n,
        samples=SAMPLES,
        gold=() if loss is None else loss.answers,
        capability=capability,
    )


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

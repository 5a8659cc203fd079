"""Evaluates a model on a suite: rates of judged replies, loss on gold answers, and capability."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from seawall.artifacts.evaluation import CapabilityScore, EvalResult
from seawall.config.eval import EvalConfig
from seawall.data.types import Judge
from seawall.evaluation.capability.run import measure_capability
from seawall.evaluation.collect import Progress, collect_samples
from seawall.evaluation.engines import Engine, make_engine
from seawall.evaluation.gold import GoldLoss, encode_gold, gold_answer_loss
from seawall.evaluation.rates import disagreement, group_rates, mean_harm, rates_by_length
from seawall.evaluation.suite import EvalSuite
from seawall.evaluation.wrapping import measure_wrapping
from seawall.models.decoding import context_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from seawall.models.decoding import Decoder

SAMPLES = "samples.jsonl"

GoldMeasure = Callable[[Progress | None], GoldLoss]
"""Measures the loss on gold answers and reports its progress."""
CapabilityMeasure = Callable[[Progress | None], tuple[CapabilityScore, ...]]
"""Measures the capability tasks and reports its progress."""


@dataclass(frozen=True, slots=True)
class ExtraMeasures:
    """Measurements that need the model's weights in this process; None skips one.

    Attributes:
        gold: the loss on the suite's gold answers.
        capability: the recipe's capability tasks.
    """

    gold: GoldMeasure | None = None
    capability: CapabilityMeasure | None = None


def evaluate(  # noqa: PLR0913 - the decoder is one more
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    suite: EvalSuite,
    config: EvalConfig,
    *,
    judge: Judge,
    folder: Path,
    fingerprint: str,
    progress: Progress | None = None,
    decoder: Decoder | None = None,
) -> EvalResult:
    """Rates, gold loss and (if the recipe has tasks) capability of a loaded model.

    Replies are greedy, so equal weights give equal results.

    Args:
        model: the model; left unchanged.
        tokenizer: its tokenizer.
        suite: the prompts.
        config: lengths, batch size, resamples; its engine must be no endpoint.
        judge: labels replies refused, complied or unscored.
        folder: existing folder in which to write or continue samples.jsonl and `capability/`.
        fingerprint: fingerprint of the model, for the result.
        progress: called after every batch.
        decoder: generates the replies; None takes our loop.

    Raises:
        SeawallError: the judge's endpoint does not answer; judged samples are kept, and a later call resumes.
        ArtifactError: the folder's samples are damaged or belong to another evaluation.
        DataError: the chat template refuses a prompt.
        ConfigError: a capability task cannot be measured.
    """
    assert config.engine.kind != "endpoint"
    if config.gold and suite.gold:
        encode_gold(tokenizer, suite.gold, context=context_length(model))  # refused before any reply is generated
    return evaluate_engine(
        make_engine(config, (model, tokenizer), decoder=decoder),
        suite,
        config,
        judge=judge,
        folder=folder,
        fingerprint=fingerprint,
        extra=_extra_measures(model, tokenizer, suite, config, folder=folder),
        progress=progress,
    )


def _extra_measures(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    suite: EvalSuite,
    config: EvalConfig,
    *,
    folder: Path,
) -> ExtraMeasures:
    def gold(progress: Progress | None) -> GoldLoss:
        return gold_answer_loss(model, tokenizer, suite.gold, batch_size=config.forward_rows, progress=progress)

    def capability(progress: Progress | None) -> tuple[CapabilityScore, ...]:
        assert config.capability is not None
        return measure_capability(
            model, tokenizer, config.capability, seed=config.seed, folder=folder, progress=progress
        )

    return ExtraMeasures(
        gold=gold if config.gold and suite.gold else None,
        capability=capability if config.capability is not None else None,
    )


def evaluate_engine(
    engine: Engine,
    suite: EvalSuite,
    config: EvalConfig,
    *,
    judge: Judge,
    folder: Path,
    fingerprint: str,
    extra: ExtraMeasures = ExtraMeasures(),
    progress: Progress | None = None,
) -> EvalResult:
    """Rates of every group of the suite, with the replies of any engine.

    Every batch is saved in `folder/samples.jsonl` before the next begins, so an interrupted evaluation resumes there.
    A prompt without a reply is tried once more at the end; then it counts as unscored.

    Args:
        engine: generates the replies.
        suite: the prompts.
        config: lengths, batch size, resamples.
        judge: labels replies refused, complied or unscored.
        folder: existing folder in which to write or continue samples.jsonl.
        fingerprint: fingerprint of the model, for the result.
        extra: further measurements.
        progress: called after every batch.

    Raises:
        SeawallError: an endpoint does not answer; the samples so far are kept, and a later call resumes.
        ArtifactError: the folder's samples are damaged or belong to another evaluation.
    """
    prompts = suite.prompts()
    tasks = len(config.capability.tasks) if extra.capability is not None and config.capability is not None else 0
    total = len(prompts) + (len(suite.gold) if extra.gold is not None else 0) + tasks
    on_samples = _part_of(progress, 0, total)
    samples = collect_samples(engine, prompts, config, judge=judge, path=folder / SAMPLES, progress=on_samples)
    loss = None if extra.gold is None else extra.gold(_part_of(progress, len(prompts), total))
    scores = () if extra.capability is None else extra.capability(_part_of(progress, total - tasks, total))
    return EvalResult(
        model_fingerprint=fingerprint,
        groups=group_rates(samples),
        gold_loss=None if loss is None else loss.loss,
        gold_n=0 if loss is None else loss.n,
        samples=SAMPLES,
        gold=() if loss is None else loss.answers,
        lengths=rates_by_length(samples),
        capability=scores,
        disagreement=disagreement(samples),
        wrapping=measure_wrapping(samples, suite.wrapped_in),
        harm=mean_harm(samples),
    )


def _part_of(progress: Progress | None, before: int, total: int) -> Progress | None:
    """The progress of one part of the evaluation, reported as progress of the evaluation."""
    if progress is None:
        return None
    return lambda count, _: progress(before + count, total)

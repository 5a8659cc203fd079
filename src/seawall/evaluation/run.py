"""Ask a model everything in a suite, judge its replies, and measure its loss on gold answers and its capability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from seawall.artifacts.evaluation import CapabilityScore, Cut, EvalResult, Rate, Sample
from seawall.artifacts.groups import target
from seawall.config.eval import EvalConfig
from seawall.data.types import NO_REPLY, Judge, Verdict
from seawall.evaluation.capability.run import measure_capability
from seawall.evaluation.engines import Engine, Reply, make_engine
from seawall.evaluation.gold import GoldLoss, gold_answer_loss
from seawall.evaluation.metrics import rate_with_interval
from seawall.evaluation.samples import SampleLog
from seawall.evaluation.suite import EvalPrompt, EvalSuite
from seawall.evaluation.unanswered import judge_unanswered, require_answers, require_replies

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SAMPLES = "samples.jsonl"

Progress = Callable[[int, int], None]
"""Told how many prompts, gold questions and tasks are done, and of how many."""
GoldMeasure = Callable[[Progress | None], GoldLoss]
"""Measures the loss on gold answers, and tells its progress."""
CapabilityMeasure = Callable[[Progress | None], tuple[CapabilityScore, ...]]
"""Measures the tasks of capability, and tells its progress."""


@dataclass(frozen=True, slots=True)
class ExtraMeasures:
    """What is measured besides the replies, where the weights are here; None leaves it out.

    Attributes:
        gold: the loss on the suite's gold answers.
        capability: the recipe's tasks.
    """

    gold: GoldMeasure | None = None
    capability: CapabilityMeasure | None = None


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
    """Rates, gold loss and, if the recipe asks for them, scores of capability, of a model that is loaded here.

    Replies are greedy, so the same weights give the same result.

    Args:
        model: the model; left as it was.
        tokenizer: its tokenizer.
        suite: what to ask.
        config: lengths, batch size, resamples; its engine must be the one that generates here.
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
    assert config.engine.kind == "transformers"

    def gold(told: Progress | None) -> GoldLoss:
        return gold_answer_loss(model, tokenizer, suite.gold, batch_size=config.forward_rows, progress=told)

    def capability(told: Progress | None) -> tuple[CapabilityScore, ...]:
        assert config.capability is not None
        return measure_capability(model, tokenizer, config.capability, seed=config.seed, folder=folder, progress=told)

    return evaluate_engine(
        make_engine(config, (model, tokenizer)),
        suite,
        config,
        judge=judge,
        folder=folder,
        fingerprint=fingerprint,
        extra=ExtraMeasures(
            gold=gold if config.gold and suite.gold else None,
            capability=capability if config.capability is not None else None,
        ),
        progress=progress,
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
    """Rates for every group of the suite, whoever writes the replies.

    Every batch is on disk in `folder/samples.jsonl` when the next begins: an evaluation that was ended goes on there,
    without asking anything twice. A prompt that the engine has no reply to is asked once more at the end; then it
    counts as unscored.

    Args:
        engine: writes the replies.
        suite: what to ask.
        config: lengths, batch size, resamples.
        judge: says refused, complied or unscored.
        folder: where samples.jsonl is written or continued; it must exist.
        fingerprint: the model's, for the result.
        extra: what to measure besides.
        progress: called after every batch.

    Raises:
        SeawallError: an endpoint does not answer; what is done stays, and the evaluation can go on later.
        ArtifactError: the folder's samples are damaged or of another evaluation.
    """
    asked = suite.prompts()
    tasks = len(config.capability.tasks) if extra.capability is not None and config.capability is not None else 0
    total = len(asked) + (len(suite.gold) if extra.gold is not None else 0) + tasks
    on_samples = _part_of(progress, 0, total)
    samples = collect_samples(engine, asked, config, judge=judge, path=folder / SAMPLES, progress=on_samples)
    loss = None if extra.gold is None else extra.gold(_part_of(progress, len(asked), total))
    scores = () if extra.capability is None else extra.capability(_part_of(progress, total - tasks, total))
    return EvalResult(
        model_fingerprint=fingerprint,
        groups=group_rates(samples, resamples=config.bootstrap, seed=config.seed),
        gold_loss=None if loss is None else loss.loss,
        gold_n=0 if loss is None else loss.n,
        samples=SAMPLES,
        gold=() if loss is None else loss.answers,
        lengths=rates_by_length(samples, resamples=config.bootstrap, seed=config.seed),
        capability=scores,
        disagreement=disagreement(samples),
    )


def generate_and_judge(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[EvalPrompt],
    config: EvalConfig,
    *,
    judge: Judge,
    path: Path,
    progress: Progress | None = None,
) -> list[Sample]:
    """`collect_samples`, of a model that is loaded here; it is left as it was.

    Raises:
        SeawallError: as `collect_samples` does.
        DataError: the chat template cannot take a prompt.
    """
    engine = make_engine(config, (model, tokenizer))
    return collect_samples(engine, asked, config, judge=judge, path=path, progress=progress)


def collect_samples(
    engine: Engine,
    asked: Sequence[EvalPrompt],
    config: EvalConfig,
    *,
    judge: Judge,
    path: Path,
    progress: Progress | None = None,
) -> list[Sample]:
    """A sample for every prompt, in their order. Those that `path` holds already are not asked again.

    Args:
        engine: writes the replies.
        asked: the prompts.
        config: lengths of replies, batch size.
        judge: says refused, complied or unscored.
        path: where samples are written batch by batch.
        progress: called after every batch.

    Raises:
        SeawallError: an endpoint does not answer; what is done stays.
        ArtifactError: the file's samples are damaged or of other prompts.
    """
    fixed = config.engine.kind == "transformers" and config.batch_size != "auto"
    log = SampleLog(path, asked, batch_size=config.forward_rows if fixed else 1)
    _reply_to_all(log, engine, config, judge=judge, told=progress)
    judge_unanswered(log, judge)
    return log.samples


def _reply_to_all(log: SampleLog, engine: Engine, config: EvalConfig, *, judge: Judge, told: Progress | None) -> None:
    """A sample for every prompt of the log that has none; those that no reply comes to are asked twice."""
    total = len(log.asked)
    lost: dict[str, str] = {}
    for last in (False, True):
        waiting = log.missing
        if not waiting:
            return

        def keep(
            positions: Sequence[int],
            replies: Sequence[Reply],
            *,
            waiting: Sequence[EvalPrompt] = waiting,
            last: bool = last,
        ) -> None:
            pairs = [(waiting[at], reply) for at, reply in zip(positions, replies, strict=True)]
            done = [(one, reply) for one, reply in pairs if reply.final]
            lost.update({one.id: str(reply.problem) for one, reply in pairs if not reply.final})
            if not done and not last:
                require_replies([*lost.values()], total)
            log.append(judged_samples(done, config, judge))
            if told is not None:
                told(total - len(log.missing), total)

        lost.clear()
        engine(
            [one.prompt for one in waiting],
            max_new_tokens=config.longest,
            lengths=sorted({config.max_new_tokens, *config.lengths}),
            on_replies=keep,
        )
    require_replies([*lost.values()], total)
    left = [(one, Reply("", None, None, problem=lost[one.id])) for one in log.missing]
    log.append(judged_samples(left, config, judge))


def judged_samples(done: Sequence[tuple[EvalPrompt, Reply]], config: EvalConfig, judge: Judge) -> list[Sample]:
    """Samples of prompts and their replies: judged as they are, and as they are after each of the wanted lengths.

    A text that is the same at several lengths is judged once. Where there is no reply the sample is unscored.

    Raises:
        SeawallError: the judge's endpoint does not answer.
    """
    texts = {
        (at, reply.after(length)): done[at][0].prompt
        for at, (_, reply) in enumerate(done)
        for length in (config.max_new_tokens, *config.lengths)
        if reply.problem is None
    }
    verdicts = judge([*texts.values()], [text for _, text in texts]) if texts else []
    require_answers(verdicts)
    found = dict(zip(texts, verdicts, strict=True))
    samples = []
    for at, (one, reply) in enumerate(done):
        none = Verdict("unscored", f"{NO_REPLY}{reply.problem}", "")
        text = reply.after(config.max_new_tokens)
        verdict = found.get((at, text), none)
        cuts = [(length, reply.after(length)) for length in config.lengths]
        judged = [(length, cut, found.get((at, cut), none)) for length, cut in cuts]
        samples.append(
            Sample(
                id=one.id,
                goal=one.goal,
                group=one.group,
                prompt=one.prompt,
                response=text,
                label=verdict.label,
                reason=verdict.reason,
                harm=verdict.harm,
                disputed=verdict.disputed,
                cuts=tuple(Cut(length, cut, said.label, said.reason) for length, cut, said in judged),
            )
        )
    return samples


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


def disagreement(samples: Sequence[Sample]) -> float | None:
    """The share of replies on which several judges differ, among those that two or more scored; None where none is."""
    compared = [sample.disputed for sample in samples if sample.disputed is not None]
    return sum(compared) / len(compared) if compared else None


def rates_by_length(samples: Sequence[Sample], *, resamples: int, seed: int) -> dict[str, dict[int, Rate]]:
    """The rate of every group after so many tokens of each reply; empty where replies were not judged so."""
    found: dict[str, dict[int, Rate]] = {}
    for at, cut in enumerate(samples[0].cuts if samples else ()):
        shortened = [replace(sample, label=sample.cuts[at].label) for sample in samples]
        for group, rate in group_rates(shortened, resamples=resamples, seed=seed).items():
            found.setdefault(group, {})[cut.length] = rate
    return found


def _part_of(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Progress of one part of the work, told as progress of the whole."""
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)

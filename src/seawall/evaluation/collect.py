"""Generates replies to the prompts of a suite and judges them, batch by batch, with every batch saved at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seawall.artifacts.evaluation import Cut, Sample
from seawall.config.eval import EvalConfig
from seawall.data.answers import ReplyParts
from seawall.data.types import NO_REPLY, Judge, Verdict
from seawall.evaluation.engines import Engine, Reply, make_engine
from seawall.evaluation.live import hold_conversations
from seawall.evaluation.samples import SampleLog
from seawall.evaluation.suite import EvalPrompt
from seawall.evaluation.unanswered import judge_unanswered, require_answers, require_replies

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Progress = Callable[[int, int], None]
"""Called with the number of prompts, gold questions and tasks done, and in total."""


def generate_and_judge(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[EvalPrompt],
    config: EvalConfig,
    *,
    judge: Judge,
    path: Path,
    progress: Progress | None = None,
) -> list[Sample]:
    """`collect_samples` of a loaded model, which is left unchanged.

    Raises:
        SeawallError: as `collect_samples`.
        DataError: the chat template refuses a prompt.
    """
    engine = make_engine(config, (model, tokenizer))
    return collect_samples(engine, prompts, config, judge=judge, path=path, progress=progress)


def collect_samples(
    engine: Engine,
    prompts: Sequence[EvalPrompt],
    config: EvalConfig,
    *,
    judge: Judge,
    path: Path,
    progress: Progress | None = None,
) -> list[Sample]:
    """The judged sample of every prompt, in order. Prompts with a sample in `path` are not generated again.

    Args:
        engine: generates the replies.
        prompts: the prompts.
        config: reply lengths and batch size.
        judge: labels replies refused, complied or unscored.
        path: file to which samples are appended batch by batch; the turns of live attacks go to a file beside it.
        progress: called after every batch.

    Raises:
        SeawallError: an endpoint does not answer; the samples so far are kept.
        ArtifactError: the file's samples are damaged or belong to other prompts.
    """
    fixed = config.engine.kind == "transformers" and config.batch_size != "auto"
    batch_size = config.forward_rows if fixed else 1
    conversations = hold_conversations(engine, prompts, config, path.with_suffix(".live.jsonl"), batch_size=batch_size)
    log = SampleLog(path, conversations.prompts, batch_size=batch_size)
    _reply_to_all(log, engine, config, judge=judge, broken=conversations.problems, progress=progress)
    judge_unanswered(log, judge)
    return log.samples


def _reply_to_all(
    log: SampleLog,
    engine: Engine,
    config: EvalConfig,
    *,
    judge: Judge,
    broken: Mapping[str, str],
    progress: Progress | None,
) -> None:
    """Adds a sample for every prompt of the log without one; prompts without a reply are tried twice.

    `broken` tells why live conversations broke off, by the prompt's id; these prompts are not asked.
    """
    total = len(log.prompts)
    problems: dict[str, str] = {}
    for last_pass in (False, True):
        waiting = [prompt for prompt in log.missing if prompt.id not in broken]
        if not waiting:
            break

        def save(
            positions: Sequence[int],
            replies: Sequence[Reply],
            *,
            waiting: Sequence[EvalPrompt] = waiting,
            last_pass: bool = last_pass,
        ) -> None:
            pairs = [(waiting[position], reply) for position, reply in zip(positions, replies, strict=True)]
            answered = [(prompt, reply) for prompt, reply in pairs if reply.final]
            problems.update({prompt.id: str(reply.problem) for prompt, reply in pairs if not reply.final})
            if not answered and not last_pass:
                require_replies([*problems.values()], total)
            log.append(judged_samples(answered, config, judge))
            if progress is not None:
                progress(total - len(log.missing), total)

        problems.clear()
        lengths = sorted({config.max_new_tokens, *config.lengths})
        texts = [prompt.prompt for prompt in waiting]
        engine(texts, max_new_tokens=config.longest, lengths=lengths, on_replies=save)
    require_replies([*problems.values()], total)
    problems |= broken
    unanswered = [(prompt, Reply("", None, None, problem=problems[prompt.id])) for prompt in log.missing]
    log.append(judged_samples(unanswered, config, judge))


def judged_samples(pairs: Sequence[tuple[EvalPrompt, Reply]], config: EvalConfig, judge: Judge) -> list[Sample]:
    """Samples of prompts and their replies, judged in full and at each of the recipe's further lengths.

    A text that is equal at several lengths is judged once. A prompt without a reply gives an unscored sample.

    Raises:
        SeawallError: the judge's endpoint does not answer.
    """
    texts: dict[tuple[int, str], EvalPrompt] = {
        (index, reply.after(length).answer): prompt
        for index, (prompt, reply) in enumerate(pairs)
        for length in (config.max_new_tokens, *config.lengths)
        if reply.problem is None and not reply.after(length).unscored
    }
    prompts, goals = [prompt.prompt for prompt in texts.values()], [prompt.goal for prompt in texts.values()]
    verdicts = judge(prompts, [text for _, text in texts], goals) if texts else []
    require_answers(verdicts)
    by_text: dict[int, dict[str, Verdict]] = {index: {} for index in range(len(pairs))}
    for (index, text), verdict in zip(texts, verdicts, strict=True):
        by_text[index][text] = verdict
    return [_sample(prompt, reply, by_text[index], config) for index, (prompt, reply) in enumerate(pairs)]


def _sample(prompt: EvalPrompt, reply: Reply, verdicts: Mapping[str, Verdict], config: EvalConfig) -> Sample:
    """One sample, from the verdicts on the reply's answer at every length."""

    def verdict_on(parts: ReplyParts) -> Verdict:
        unscored = Verdict("unscored", parts.unscored or f"{NO_REPLY}{reply.problem}", "")
        return unscored if parts.unscored else verdicts.get(parts.answer, unscored)

    parts = reply.after(config.max_new_tokens)
    verdict = verdict_on(parts)
    judged = [(length, cut, verdict_on(cut)) for length in config.lengths for cut in [reply.after(length)]]
    return Sample(
        id=prompt.id,
        goal=prompt.goal,
        group=prompt.group,
        prompt=prompt.prompt,
        live=prompt.live,
        response=parts.answer,
        label=verdict.label,
        reason=verdict.reason,
        harm=verdict.harm,
        disputed=verdict.disputed,
        cuts=tuple(Cut(length, cut.answer, verdict.label, verdict.reason) for length, cut, verdict in judged),
        thought=parts.thought,
    )

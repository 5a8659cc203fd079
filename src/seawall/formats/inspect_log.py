"""Logs of Inspect (UK AI Security Institute, MIT licence), which its viewer and its other tools open.

Written for inspect-ai 0.3.285; `Score.reason` exists since 0.3.245. A log has two scores per reply, `complied` and
`refused`, and our rates with their intervals as metrics.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seawall.artifacts.evaluation import Rate, Sample
from seawall.artifacts.groups import ATTACK, POOLED, group_of, is_attack
from seawall.errors import ConfigError
from seawall.evaluation.pooled import with_pooled
from seawall.evaluation.rates import group_rates, refusal_rates
from seawall.evaluation.suite import asked
from seawall.formats.evaluations import Evaluated, read_evaluations
from seawall.formats.extras import require_extra
from seawall.formats.verdicts import score_reason, score_value
from seawall.runs.files import storage_errors
from seawall.runs.publish import published, require_free

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalMetric, EvalSample, EvalScore
    from inspect_ai.scorer import Score

SCORES = ("complied", "refused")
"""The scores of every reply, by the verdict that each counts."""
_EPOCH = "1970-01-01T00:00:00Z"
"""The time of a stage whose manifest has none."""


def write_inspect_logs(path: Path, output: Path) -> tuple[Path, ...]:
    """Writes one `.eval` log per evaluation of a folder.

    The logs hold every prompt and reply, as `samples.jsonl` does. Equal evaluations give equal ids.

    Args:
        path: a finished run, or a folder of `seawall eval`.
        output: new or empty folder for the logs.

    Raises:
        ConfigError: inspect-ai is not installed, or too old.
        RunFolderError: no finished evaluation in the folder, or the output exists.
        ArtifactError: a file is damaged or was changed.
    """
    _require_inspect()
    from inspect_ai.log import write_eval_log

    require_free(output)
    evaluations = read_evaluations(path)
    names = [f"{evaluated.task}.eval" for evaluated in evaluations]
    with storage_errors(output), published(output) as scratch:
        for name, evaluated in zip(names, evaluations, strict=True):
            write_eval_log(inspect_log(evaluated), str(scratch.absolute() / name), format="eval")
    return tuple(output / name for name in names)


def inspect_log(evaluated: Evaluated) -> EvalLog:
    """The log of one evaluation."""
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalResults, EvalSpec, EvalStats
    from inspect_ai.model import GenerateConfig

    samples, digest = evaluated.samples, _digest(evaluated)
    settings, manifest = evaluated.recipe["eval"], evaluated.manifest
    started = str(evaluated.times.get("started") or _EPOCH)
    packages = {name: version for name, version in manifest["environment"]["packages"].items() if version}
    dataset = EvalDataset(name=evaluated.recipe["name"], samples=len(samples), sample_ids=[row.id for row in samples])
    spec = EvalSpec(
        eval_id=digest[:22],
        run_id=digest[22:44],
        task_id=evaluated.task,
        created=started,
        task=evaluated.task,
        dataset=dataset,
        model=evaluated.model,
        model_generate_config=GenerateConfig(max_tokens=settings["max_new_tokens"], temperature=0.0),
        config=EvalConfig(epochs=1),
        packages=packages,
        metadata=_facts(evaluated),
    )
    results = EvalResults(total_samples=len(samples), completed_samples=len(samples), scores=_scores(evaluated))
    ended = str(evaluated.times.get("ended") or started)
    return EvalLog(
        status="success",
        eval=spec,
        results=results,
        stats=EvalStats(started_at=started, completed_at=ended),
        samples=[_sample(row, evaluated.model, digest) for row in samples],
    )


def _require_inspect() -> None:
    require_extra("an Inspect log", package="inspect-ai", module="inspect_ai", extra="inspect")
    from inspect_ai.scorer import Score

    if "reason" not in Score.model_fields:
        raise ConfigError(
            "the installed inspect-ai is too old for reasons of scores",
            expected="inspect-ai 0.3.245 or later",
            remedy="pip install 'seawall[inspect]' in an environment of its own",
        )


def _digest(evaluated: Evaluated) -> str:
    """A digest of the evaluation, from which its ids are made."""
    rows = "".join(f"{row.id} {row.outcome} {row.response}\n" for row in evaluated.samples)
    text = f"{evaluated.task} {evaluated.result.model_fingerprint} {evaluated.times.get('started')}\n{rows}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _facts(evaluated: Evaluated) -> dict[str, Any]:
    """What the log says of model, prompts, judge, and measures that are no rates of replies."""
    result, manifest = evaluated.result, evaluated.manifest
    return {
        "weights": result.model_fingerprint,
        "prompts": manifest.get("data", {}).get("prompts"),
        "judge": evaluated.recipe["eval"]["judge"],
        "seed": manifest.get("seed"),
        "gold_answer_loss": result.gold_loss,
        "harm": {group: asdict(harm) for group, harm in result.harm.items()},
        "judge_disagreement": result.disagreement,
        "capability": {f"{score.task} {score.metric}": score.score for score in result.capability},
    }


def _sample(row: Sample, model: str, digest: str) -> EvalSample:
    """One reply: the conversation as Inspect's messages, and its scores; the evaluation's digest makes its id."""
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatCompletionChoice, ModelOutput

    messages = [_message(message.role, message.content) for message in row.prompt]
    reply = _message("assistant", row.response, thought=row.thought)
    output = ModelOutput(model=model, choices=[ChatCompletionChoice(message=reply, stop_reason="unknown")])
    group = group_of(row.group)
    return EvalSample(
        id=row.id,
        epoch=1,
        input=messages[: len(asked(row))],
        target="refused" if group.is_harmful else "complied",
        messages=[*messages, reply],
        output=output,
        scores={name: _score(row, name) for name in SCORES},
        metadata={
            "group": row.group,
            "goal": row.goal,
            "side": "harmful" if group.is_harmful else "harmless",
            **({"attack": row.group.removeprefix(ATTACK)} if is_attack(row.group) else {}),
        },
        uuid=hashlib.sha256(f"{digest} {row.id}".encode()).hexdigest()[:22],
    )


def _message(role: str, content: str, *, thought: str = "") -> Any:
    from inspect_ai.model import (
        ChatMessageAssistant,
        ChatMessageSystem,
        ChatMessageUser,
        ContentReasoning,
        ContentText,
    )

    if thought:
        return ChatMessageAssistant(content=[ContentReasoning(reasoning=thought), ContentText(text=content)])
    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    return kinds[role](content=content)


def _score(row: Sample, counted: str) -> Score:
    from inspect_ai.scorer import Score

    lengths = {str(cut.length): {"outcome": cut.outcome, "reason": cut.reason} for cut in row.cuts}
    details = {"harm": row.harm, "disputed": row.disputed, "lengths": lengths or None}
    return Score(
        value=score_value(row.outcome, counted),
        answer=row.outcome,
        explanation=row.reason,
        reason=score_reason(row.outcome, row.reason, row.response),
        metadata={name: value for name, value in details.items() if value is not None} or None,
    )


def _scores(evaluated: Evaluated) -> list[EvalScore]:
    """The two scores with their rates; what a group counts decides under which score its rate stands."""
    from inspect_ai.log import EvalScore

    samples = evaluated.samples
    unscored = sum(row.outcome == "unscored" for row in samples)
    metrics = dict(_metrics(evaluated))
    return [
        EvalScore(
            name=name,
            scorer=name,
            scored_samples=len(samples) - unscored,
            unscored_samples=unscored,
            metrics={key: metric for key, (counted, metric) in metrics.items() if counted == name},
        )
        for name in SCORES
    ]


def _metrics(evaluated: Evaluated) -> Iterator[tuple[str, tuple[str, EvalMetric]]]:
    """Key -> (the verdict that the rate counts, the metric): attacks pooled, every group, refusals of attacks."""
    pooled = group_rates(with_pooled(evaluated.samples))
    rates = {**({POOLED: pooled[POOLED]} if POOLED in pooled else {}), **evaluated.result.groups}
    for key, rate in rates.items():
        group = group_of(key)
        family = key.removeprefix(ATTACK) if is_attack(key) else ""
        name = f"{group.metric}:{family}" if family else group.metric if key == POOLED else group.summary
        yield name, (group.target, _metric(family or name, rate, group=group.metric if family else None))
    for key, rate in refusal_rates(evaluated.samples).items():
        family = key.removeprefix(ATTACK)
        yield f"refused:{family}", ("refused", _metric(family, rate, group="attacks_refused"))
    measures = {} if evaluated.result.wrapping is None else evaluated.result.wrapping.measures()
    for name, contrast in measures.items():
        yield name, ("refused", _number(name, contrast.difference, asdict(contrast)))


def _metric(name: str, rate: Rate, *, group: str | None) -> EvalMetric:
    return _number(name, rate.rate, asdict(rate), group=group)


def _number(name: str, value: float | None, facts: Mapping[str, Any], *, group: str | None = None) -> EvalMetric:
    """A metric with interval and counts beside it; NaN where nothing was scored."""
    from inspect_ai.log import EvalMetric

    metadata = {key: fact for key, fact in facts.items() if key not in ("rate", "difference")}
    return EvalMetric(name=name, group=group, value=float("nan") if value is None else value, metadata=metadata)

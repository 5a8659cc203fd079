"""Converts the harness's log to one record per question, and records to scores."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from seawall.artifacts.evaluation import CapabilityScore
from seawall.errors import ArtifactError, ConfigError
from seawall.evaluation.capability.harness import HarnessLog
from seawall.runs.files import write_text

Record = dict[str, Any]
"""Keys: `task`, `id`, `filter`, `prompt`, `target`, `replies`, `read` (the filter's output), and by metric `scores` and
`higher_is_better`.
"""


def to_records(name: str, logged: HarnessLog) -> list[Record]:
    """One record per question and filter.

    Includes the metrics that are means of one number in [0, 1] per question in every task of a group; others (F1 over
    all questions, perplexity, BLEU) cannot be paired by question.

    Raises:
        ConfigError: the task has no such metric.
    """
    metrics = _comparable(logged)
    if not metrics:
        raise ConfigError(
            f"eval.capability: no metric of the task {name} can be paired by question",
            expected="a metric that is a mean over the questions, such as acc or exact_match",
            remedy="choose another task",
        )
    return [
        {
            "task": task,
            "id": f"{task}/{sample['doc_id']}/{sample['doc_hash'][:12]}",
            "filter": sample["filter"],
            "prompt": str(sample["arguments"][0][0]),
            "target": sample["target"],
            "replies": sample["resps"],
            "read": sample["filtered_resps"],
            "scores": {metric: float(sample[metric]) for metric, key in metrics if key == sample["filter"]},
            "higher_is_better": {
                metric: bool(logged.higher_is_better[task][metric])
                for metric, key in metrics
                if key == sample["filter"]
            },
        }
        for task, samples in logged.samples.items()
        for sample in samples
        if any(key == sample["filter"] for _, key in metrics)
    ]


def to_scores(name: str, records: Sequence[Record]) -> list[CapabilityScore]:
    """The score of every metric: the mean over all questions of a task or group."""
    by_metric: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        for metric in record["scores"]:
            by_metric.setdefault((metric, record["filter"]), []).append(record)
    return [
        _score(
            f"{metric}" if key == "none" else f"{metric},{key}",
            [record["id"] for record in rows],
            [float(record["scores"][metric]) for record in rows],
            task=name,
            higher_is_better=all(record["higher_is_better"][metric] for record in rows),
        )
        for (metric, key), rows in by_metric.items()
    ]


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Writes one line per record, atomically."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False, default=str) + "\n" for record in records))


def read_records(path: Path) -> list[Record]:
    """The records of a file of `write_records`.

    Raises:
        ArtifactError: the file is damaged.
    """
    try:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged", got=str(error), remedy="delete the file and run again") from None


def _score(
    metric: str, ids: Sequence[str], values: Sequence[float], *, task: str, higher_is_better: bool
) -> CapabilityScore:
    n = len(values)
    mean = math.fsum(values) / n
    spread = math.fsum((value - mean) ** 2 for value in values) / (n - 1) if n > 1 else 0.0
    return CapabilityScore(
        task=task,
        metric=metric,
        higher_is_better=higher_is_better,
        score=mean,
        stderr=math.sqrt(spread / n),
        ids=tuple(ids),
        values=tuple(values),
    )


def _comparable(logged: HarnessLog) -> list[tuple[str, str]]:
    """The pairs (metric, filter) that are means over questions in every task of the group."""
    common: dict[tuple[str, str], int] = {}
    for task, samples in logged.samples.items():
        for pair in _of_task(samples, logged.reported[task]):
            common[pair] = common.get(pair, 0) + 1
    return [pair for pair, times in common.items() if times == len(logged.samples)]


def _of_task(samples: Sequence[Mapping[str, Any]], reported: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    pairs = dict.fromkeys((metric, sample["filter"]) for sample in samples for metric in sample["metrics"])
    for metric, key in pairs:
        values = [sample[metric] for sample in samples if sample["filter"] == key]
        if not all(isinstance(value, int | float) and 0 <= value <= 1 for value in values):
            continue
        reported_mean = reported.get(f"{metric},{key}")
        if isinstance(reported_mean, int | float) and math.isclose(
            reported_mean, math.fsum(values) / len(values), abs_tol=1e-9
        ):
            yield metric, key

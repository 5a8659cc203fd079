"""Finished evaluations with verdicts chosen by a test, written without a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seawall.artifacts.evaluation import CapabilityScore, EvalResult, GoldAnswer, Sample
from seawall.data.types import VerdictLabel, user
from seawall.evaluation.rates import group_rates
from seawall.evaluation.run import SAMPLES
from seawall.runs.files import write_json
from seawall.runs.folder import RunFolder, update_manifest
from seawall.runs.sealed import seal_files
from seawall.runs.stage import run_stage
from seawall.shell.evaluated import STAGE

REPLIES: Mapping[VerdictLabel, str] = {"refused": "I cannot help.", "complied": "Step one.", "unscored": "zq zq"}
EVAL = {"max_new_tokens": 24, "bootstrap": 200, "seed": 0, "judge": {"kind": "keyword"}, "capability": None}
SCORES = (CapabilityScore("sums", "acc", True, 0.5, 0.1, ("a", "b", "c", "d"), (1.0, 0.0, 1.0, 0.0)),)
"""The scores of an evaluation with a section `capability`."""
Verdicts = Mapping[str, Sequence[VerdictLabel]]
"""Group -> the verdict on each of its prompts."""


def verdicts(refused: int, complied: int, unscored: int = 0) -> list[VerdictLabel]:
    counts: dict[VerdictLabel, int] = {"refused": refused, "complied": complied, "unscored": unscored}
    return [label for label, count in counts.items() for _ in range(count)]


def samples(groups: Verdicts) -> list[Sample]:
    return [
        Sample(
            id=f"{group}/{index:04d}",
            goal=f"goal {index}",
            group=group,
            prompt=user(f"{group} prompt {index}"),
            response=REPLIES[label],
            label=label,
            reason="",
        )
        for group, labels in groups.items()
        for index, label in enumerate(labels)
    ]


def write_evaluation(
    folder: Path,
    groups: Verdicts,
    *,
    weights: str = "sha256:a",
    model: str = "tiny",
    settings: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Any] | None = None,
    losses: Sequence[float] = (),
    limit: int | None = None,
) -> Path:
    """The folder of a `seawall eval` with these verdicts; `settings` are of the section `eval`."""
    section = {**EVAL, **(settings or {})}
    resolved = {"target": {"delta": None, "adapter": None}, "name": "x", "model": {"id": model}, "eval": section}
    resolved |= {"data": {"limit": limit}}
    run = RunFolder.open(folder, resolved=resolved, text="")
    update_manifest(run, {"model": {"id": model, "weights": weights}})
    stage_inputs = {"judge_state": {"rules": 2}, "rendered": "sha256:r", "eval": section, **(inputs or {})}
    rows = samples(groups)

    def work(scratch: Path) -> None:
        lines = (_line(row) for row in rows)
        (scratch / SAMPLES).write_text("".join(lines))
        gold = tuple(GoldAnswer(f"g{index}", nats, 2) for index, nats in enumerate(losses))
        mean = sum(losses) / (2 * len(losses)) if losses else None
        scores = () if section["capability"] is None else SCORES
        result = EvalResult(weights, group_rates(rows), mean, len(gold), SAMPLES, gold=gold, capability=scores)
        result.save(scratch)

    run_stage(run, STAGE, stage_inputs, work)
    write_json(run.summary, {"schema": 1, "evaluation": STAGE, "model": model, "fingerprint": weights})
    seal_files(run)
    return folder


def _line(sample: Sample) -> str:
    prompt = [message.as_dict() for message in sample.prompt]
    names = ("id", "group", "goal", "response", "label", "reason")
    return json.dumps({**{name: getattr(sample, name) for name in names}, "prompt": prompt}) + "\n"

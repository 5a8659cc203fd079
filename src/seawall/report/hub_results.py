"""Rates for the Hub: `.eval_results/seawall.yaml`, which model pages and leaderboards of benchmark datasets read.

The format is the Hub's (https://huggingface.co/docs/hub/eval-results); `huggingface_hub` has its reader and writer. An
entry names a data set of the Hub and a task in it, so rates of prompts from elsewhere have none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import yaml

from seawall.artifacts.evaluation import Rate
from seawall.artifacts.groups import (
    ATTACK,
    BENIGN,
    BORDERLINE,
    POOLED,
    WRAPPED,
    WRAPPED_BORDERLINE,
    group_of,
    is_attack,
    not_counted,
)
from seawall.config.data import limited_note
from seawall.data.public import hub_dataset
from seawall.report.wording import limit_of
from seawall.visible import visible_line

EVAL_RESULTS = ".eval_results/seawall.yaml"
"""The file in a model's repository."""
_SOURCES = {BENIGN: BENIGN, WRAPPED: BENIGN, BORDERLINE: BORDERLINE, WRAPPED_BORDERLINE: BORDERLINE}
"""Group -> the source of its prompts, a key of the section `data`; every other group asks the harmful goals."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A data set of the Hub: OWNER/NAME, and its commit where one is known."""

    id: str
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class HubResults:
    """The entries of one evaluation.

    Attributes:
        text: of the YAML file; empty without entries.
        tasks: task ids in the order of the entries.
        left_out: groups with a rate, but without a data set of the Hub.
    """

    text: str
    tasks: tuple[str, ...]
    left_out: tuple[str, ...]


def render_hub_results(
    rates: Mapping[str, Rate],
    recipe: Mapping[str, Any],
    manifest: Mapping[str, Any],
    *,
    stage: str,
    benchmark: Benchmark | None = None,
    source: str | None = None,
) -> HubResults:
    """One entry for every rate whose data set is known; a rate without a scored reply has none.

    Values are fractions of 1, as the rates of the model card are. The Hub prescribes no unit: its own examples are a
    fraction and a percentage.

    Args:
        rates: of every group, all attack families together among them.
        recipe: the resolved recipe.
        manifest: of the run.
        stage: the evaluation's, whose end is the date.
        benchmark: data set of every entry; None takes the recipe's sources that are data sets of the Hub.
        source: address of the report, if there is one.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    date = manifest.get("stages", {}).get(stage, {}).get("ended")
    origin = {"source_url": source, "source_name": "seawall"} if source else {}
    scored = {group: rate for group, rate in rates.items() if rate.rate is not None}
    benchmarks = {group: benchmark or _benchmark_of(group, recipe["data"], rates) for group in scored}
    entries = [
        EvalResultEntry(
            dataset_id=dataset.id,
            task_id=task_id(group),
            value=round(float(rate.rate or 0), 4),
            dataset_revision=dataset.revision,
            date=date,
            notes=_notes(group, rate, recipe, manifest),
            **origin,
        )
        for group, rate in scored.items()
        if (dataset := benchmarks[group]) is not None
    ]
    rows = eval_result_entries_to_yaml(entries)
    text = yaml.safe_dump(rows, sort_keys=False, allow_unicode=True, width=1000) if rows else ""
    unknown = tuple(group for group in scored if benchmarks[group] is None)
    return HubResults(text, tuple(entry.task_id for entry in entries), unknown)


def named_benchmark(dataset: str, revision: str | None = None) -> Benchmark:
    """A data set that a user named.

    Raises:
        ValueError: says what is wrong with the id or the revision.
    """
    if not _HUB_ID.fullmatch(dataset):
        raise ValueError("OWNER/NAME of a benchmark dataset on the Hub")
    if revision is not None and not _COMMIT.fullmatch(revision):
        raise ValueError("a commit of the dataset, 40 hexadecimal digits")
    return Benchmark(dataset, revision)


def task_id(group: str) -> str:
    """The task of a group: its measure's name, as in `summary.json`; `attack_success_rate_FAMILY` of an attack."""
    described = group_of(group)
    if is_attack(group):
        return f"{described.metric}_" + re.sub(r"[^\w.-]", "_", group.removeprefix(ATTACK))
    return described.metric if group == POOLED else described.summary


def _benchmark_of(group: str, data: Mapping[str, Any], rates: Mapping[str, Rate]) -> Benchmark | None:
    """The Hub's data set that a group's requests come from; None for attacks of a file, whose texts are its own."""
    families = {*data["attacks_seen"], *data["attacks_unseen"]}
    attacks = [key for key in rates if is_attack(key)] if group == POOLED else [group] if is_attack(group) else []
    if any(key.removeprefix(ATTACK) not in families for key in attacks):
        return None
    named = hub_dataset(data[_SOURCES.get(group, "harmful")])
    if named is None:
        return None
    dataset, revision = named
    return Benchmark(dataset, revision if revision and _COMMIT.fullmatch(revision) else None)


def _notes(group: str, rate: Rate, recipe: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """What the number is, its interval and counts, who judged, and the seed, in one line."""
    described, settings = group_of(group), recipe["eval"]
    counts = f" ({apart})" if (apart := not_counted(rate)) else ""
    version = ((manifest.get("environment") or {}).get("packages") or {}).get("seawall")
    parts = [
        f"{described.name}: share of replies that are {described.target}, from 0 to 1",
        f"95% interval {rate.low:.4f} to {rate.high:.4f}",
        f"{rate.n} replies{counts}",
        f"judge {_judge(settings['judge'])}",
        f"seed {recipe.get('seed', 0)}",
        f"greedy, at most {settings['max_new_tokens']} tokens",
        f"seawall {version}" if version else "seawall",
    ]
    note = limited_note(limit_of(recipe))
    return visible_line("; ".join(parts) + (f". {note}" if note else ""))


def _judge(judge: Mapping[str, Any]) -> str:
    """A judge by its kind, and the name of its model without a folder's path."""
    if judge["kind"] == "ensemble":
        return "ensemble of " + ", ".join(_judge(member) for member in judge["judges"])
    name = str(judge.get("model") or judge.get("name") or "")
    short = name if _HUB_ID.fullmatch(name) or judge["kind"] == "plugin" else PurePath(name).name
    return f"{judge['kind']} {short}".strip()

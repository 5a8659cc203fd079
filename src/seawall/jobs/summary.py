"""The content of `summary.json`, a stable contract (docs/run-folder.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from seawall.artifacts.evaluation import CapabilityScore, Difference, EvalResult
from seawall.artifacts.expert_set import ExpertSet
from seawall.artifacts.groups import ATTACK, CAPABILITY, GROUPS
from seawall.config.eval import EvalConfig
from seawall.evaluation.compare import capability_changes, compare
from seawall.evaluation.run import SAMPLES
from seawall.evaluation.samples import load_samples
from seawall.runs.files import read_json
from seawall.shell.context import Context


def paired_changes(context: Context, before: EvalResult, after: EvalResult) -> dict[str, Difference]:
    """The paired change of every group's rate and of every score (`capability:TASK METRIC`)."""
    sides = [load_samples(context.run.stage(f"eval-{when}") / SAMPLES) for when in ("before", "after")]
    settings = context.recipe.eval
    compared = compare(*sides, resamples=settings.bootstrap, seed=settings.seed)
    scores = capability_changes(before, after, resamples=settings.bootstrap, seed=settings.seed)
    return {
        **{group: comparison.change for group, comparison in compared.items()},
        **{f"{CAPABILITY}{score.name}": score.change for score in scores},
    }


def summarize(
    context: Context,
    selected: ExpertSet,
    before: EvalResult,
    after: EvalResult,
    *,
    changes: Mapping[str, Difference],
) -> dict[str, Any]:
    """The full contract; parity, time and memory hold placeholders that later steps fill in."""
    seen_families = set(context.prompts.seen_families)

    def both(group: str) -> dict[str, Any] | None:
        if group not in before.groups:
            return None
        sides = {"before": asdict(before.groups[group]), "after": asdict(after.groups[group])}
        return {**sides, "change": asdict(changes[group])}

    outcome = read_json(context.run.stage("repair") / "outcome.json")
    chosen = {name: outcome[name] for name in ("chosen_round", "reason") if "reason" in outcome}
    return {
        "schema": 1,
        "model": context.recipe.model.id,
        "recipe": context.recipe.name,
        "seconds": 0.0,
        "peak_memory_bytes": 0,
        "selected_experts": selected.count,
        "routed_experts": selected.total,
        **({"repair": chosen} if chosen else {}),
        "attacks": {
            name: {"seen": name in seen_families, **(both(f"{ATTACK}{name}") or {})} for name in families(before)
        },
        **{group.summary: both(name) for name, group in GROUPS.items()},
        "gold_answer_loss": {"before": before.gold_loss, "after": after.gold_loss, "n": before.gold_n},
        **attacks_by_length(before, after),
        "capability": _capability(context.recipe.eval, before, after),
        **judge_disagreement(before, after),
    }


def families(result: EvalResult) -> dict[str, str]:
    """Attack family -> its group, for the families of an evaluation."""
    return {group.removeprefix(ATTACK): group for group in result.groups if group.startswith(ATTACK)}


def attacks_by_length(result: EvalResult, after: EvalResult | None = None) -> dict[str, Any]:
    """`attacks_by_length`: family -> number of tokens -> rate (before and after, with two evaluations).

    Empty if replies were judged at their full length only.
    """
    by_family = {
        family: {
            str(length): asdict(rate) if after is None else {"before": asdict(rate), "after": asdict(later)}
            for length, rate in result.lengths[group].items()
            for later in ((after or result).lengths[group][length],)
        }
        for family, group in families(result).items()
        if result.lengths
    }
    return {"attacks_by_length": by_family} if by_family else {}


def judge_disagreement(before: EvalResult, after: EvalResult | None = None) -> dict[str, Any]:
    """`judge_disagreement`, with several judges: before and after, with two evaluations; otherwise empty."""
    if before.disagreement is None:
        return {}
    rate = before.disagreement
    return {"judge_disagreement": rate if after is None else {"before": rate, "after": after.disagreement}}


def _capability(config: EvalConfig, before: EvalResult, after: EvalResult) -> dict[str, dict[str, Any]] | None:
    """By task and metric: both scores, the paired change, and the verdict against the recipe's margin."""
    if config.capability is None:
        return None
    table: dict[str, dict[str, Any]] = {}
    for score in capability_changes(before, after, resamples=config.bootstrap, seed=config.seed):
        table.setdefault(score.before.task, {})[score.before.metric] = {
            "before": _score(score.before),
            "after": _score(score.after),
            "change": asdict(score.change),
            "higher_is_better": score.before.higher_is_better,
            "margin": config.capability.margin,
            "verdict": score.verdict(config.capability.margin),
        }
    return table


def scores(result: EvalResult) -> dict[str, dict[str, Any]]:
    """The scores of one evaluation, by task and metric."""
    table: dict[str, dict[str, Any]] = {}
    for score in result.capability:
        table.setdefault(score.task, {})[score.metric] = {**_score(score), "higher_is_better": score.higher_is_better}
    return table


def _score(score: CapabilityScore) -> dict[str, Any]:
    return {"score": score.score, "stderr": score.stderr, "n": score.n}

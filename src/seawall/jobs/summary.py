"""The headline of a run for machines: `summary.json`, a stable contract (docs/run-folder.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from seawall.artifacts.evaluation import CapabilityScore, EvalResult
from seawall.artifacts.expert_set import ExpertSet
from seawall.artifacts.groups import ATTACK, CAPABILITY, GROUPS
from seawall.config.eval import EvalConfig
from seawall.evaluation.compare import capability_changes, compare
from seawall.evaluation.metrics import Difference
from seawall.evaluation.run import SAMPLES
from seawall.evaluation.samples import load_samples
from seawall.shell.context import Context


def paired_changes(context: Context, before: EvalResult, after: EvalResult) -> dict[str, Difference]:
    """How the rate of every group and every score (`capability:TASK METRIC`) moved on the same prompts."""
    sides = [load_samples(context.run.stage(f"eval-{when}") / SAMPLES) for when in ("before", "after")]
    settings = context.recipe.eval
    compared = compare(*sides, resamples=settings.bootstrap, seed=settings.seed)
    scores = capability_changes(before, after, resamples=settings.bootstrap, seed=settings.seed)
    return {
        **{group: one.change for group, one in compared.items()},
        **{f"{CAPABILITY}{one.name}": one.change for one in scores},
    }


def summarize(
    context: Context,
    chosen: ExpertSet,
    before: EvalResult,
    after: EvalResult,
    *,
    changes: Mapping[str, Difference],
) -> dict[str, Any]:
    """Everything in the contract but the parity certificate, which comes with the export; time and memory follow."""
    seen = set(context.prompts.seen_families)

    def both(group: str) -> dict[str, Any] | None:
        if group not in before.groups:
            return None
        sides = {"before": asdict(before.groups[group]), "after": asdict(after.groups[group])}
        return {**sides, "change": asdict(changes[group])}

    return {
        "schema": 1,
        "model": context.recipe.model.id,
        "recipe": context.recipe.name,
        "seconds": 0.0,
        "peak_memory_bytes": 0,
        "selected_experts": chosen.count,
        "routed_experts": chosen.total,
        "attacks": {name: {"seen": name in seen, **(both(f"{ATTACK}{name}") or {})} for name in families(before)},
        **{group.summary: both(name) for name, group in GROUPS.items()},
        "gold_answer_loss": {"before": before.gold_loss, "after": after.gold_loss, "n": before.gold_n},
        **attacks_by_length(before, after),
        "capability": _capability(context.recipe.eval, before, after),
        **judge_disagreement(before, after),
    }


def families(result: EvalResult) -> dict[str, str]:
    """The attack families of an evaluation -> their groups."""
    return {group.removeprefix(ATTACK): group for group in result.groups if group.startswith(ATTACK)}


def attacks_by_length(result: EvalResult, after: EvalResult | None = None) -> dict[str, Any]:
    """`attacks_by_length`: family -> number of tokens -> rate (before and after, where there are two evaluations).

    Empty where replies were judged at no other length.
    """
    found = {
        family: {
            str(length): asdict(rate) if after is None else {"before": asdict(rate), "after": asdict(later)}
            for length, rate in result.lengths[group].items()
            for later in ((after or result).lengths[group][length],)
        }
        for family, group in families(result).items()
        if result.lengths
    }
    return {"attacks_by_length": found} if found else {}


def judge_disagreement(before: EvalResult, after: EvalResult | None = None) -> dict[str, Any]:
    """`judge_disagreement`, where there are several judges: before and after, where there are two evaluations."""
    if before.disagreement is None:
        return {}
    rate = before.disagreement
    return {"judge_disagreement": rate if after is None else {"before": rate, "after": after.disagreement}}


def _capability(config: EvalConfig, before: EvalResult, after: EvalResult) -> dict[str, dict[str, Any]] | None:
    """By task and metric: both scores, the paired change, and whether it is within the recipe's margin."""
    if config.capability is None:
        return None
    found: dict[str, dict[str, Any]] = {}
    for one in capability_changes(before, after, resamples=config.bootstrap, seed=config.seed):
        found.setdefault(one.before.task, {})[one.before.metric] = {
            "before": _score(one.before),
            "after": _score(one.after),
            "change": asdict(one.change),
            "higher_is_better": one.before.higher_is_better,
            "margin": config.capability.margin,
            "verdict": one.verdict(config.capability.margin),
        }
    return found


def scores(result: EvalResult) -> dict[str, dict[str, Any]]:
    """The scores of one evaluation, by task and metric."""
    found: dict[str, dict[str, Any]] = {}
    for one in result.capability:
        found.setdefault(one.task, {})[one.metric] = {**_score(one), "higher_is_better": one.higher_is_better}
    return found


def _score(one: CapabilityScore) -> dict[str, Any]:
    return {"score": one.score, "stderr": one.stderr, "n": one.n}

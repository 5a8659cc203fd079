"""The content of `summary.json`, a stable contract (docs/run-folder.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from seawall.artifacts.evaluation import CapabilityScore, Contrast, Difference, EvalResult, Sample
from seawall.artifacts.expert_set import ExpertSet
from seawall.artifacts.groups import ATTACK, CAPABILITY, GROUPS, WRAPPING
from seawall.config.eval import EvalConfig
from seawall.evaluation.compare import MIN_QUESTIONS, capability_changes, compare, gold_increase, refusal_changes
from seawall.evaluation.gate import Evidence
from seawall.evaluation.rates import refusal_rates
from seawall.evaluation.run import SAMPLES
from seawall.evaluation.samples import load_samples
from seawall.evaluation.wrapping import wrapping_changes
from seawall.jobs.gate import gate_document
from seawall.runs.files import read_json
from seawall.shell.context import Context


def evaluated_samples(context: Context) -> tuple[list[Sample], list[Sample]]:
    """The samples before and after the repair."""
    before, after = (load_samples(context.run.stage(f"eval-{when}") / SAMPLES) for when in ("before", "after"))
    return before, after


def paired_changes(context: Context, before: EvalResult, after: EvalResult) -> dict[str, Difference]:
    """The paired change of every group's rate, of every score (`capability:TASK METRIC`), and of `wrapping:MEASURE`."""
    sides = evaluated_samples(context)
    settings = context.recipe.eval
    compared = compare(*sides, resamples=settings.bootstrap, seed=settings.seed)
    scores = capability_changes(before, after, resamples=settings.bootstrap, seed=settings.seed)
    families = () if before.wrapping is None or after.wrapping is None else before.wrapping.families
    wrapping = wrapping_changes(*sides, families, resamples=settings.bootstrap, seed=settings.seed)
    return {
        **{group: comparison.change for group, comparison in compared.items()},
        **{f"{WRAPPING}{measure}": change for measure, change in wrapping.items()},
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
    samples = evaluated_samples(context)
    refused = [refusal_rates(side) for side in samples]
    refused_more = refusal_changes(*samples, resamples=context.recipe.eval.bootstrap, seed=context.recipe.eval.seed)
    unseen = frozenset(families(before)) - seen_families
    settings = context.recipe.eval
    evidence = Evidence(
        *samples, results=(before, after), unseen=unseen, resamples=settings.bootstrap, seed=settings.seed
    )

    def both(group: str) -> dict[str, Any] | None:
        if group not in before.groups:
            return None
        sides = {"before": asdict(before.groups[group]), "after": asdict(after.groups[group])}
        return {**sides, "change": asdict(changes[group])}

    outcome = read_json(context.run.stage("repair") / "outcome.json")
    chosen = {name: outcome[name] for name in ("chosen_round", "reason") if "reason" in outcome}
    chosen |= {"parameters": context.recipe.repair.parameters} if chosen else {}

    def family(name: str) -> dict[str, Any]:
        group = f"{ATTACK}{name}"
        sides = {when: asdict(rates[group]) for when, rates in zip(("before", "after"), refused, strict=True)}
        return {**(both(group) or {}), "refused": {**sides, "change": asdict(refused_more[group])}}

    return {
        "schema": 1,
        "model": context.recipe.model.id,
        "recipe": context.recipe.name,
        **({} if context.prompts.limit is None else {"limit": context.prompts.limit}),
        "seconds": 0.0,
        "peak_memory_bytes": 0,
        "selected_experts": selected.count,
        "routed_experts": selected.total,
        **({"repair": chosen} if chosen else {}),
        "attacks": {name: {"seen": name in seen_families, **family(name)} for name in families(before)},
        **{group.summary: both(name) for name, group in GROUPS.items()},
        "wrapping": wrapping_document(before, after, changes),
        "gold_answer_loss": _gold(context.recipe.eval, before, after),
        **attacks_by_length(before, after),
        "gate": gate_document(context.recipe.gate.limits, evidence),
        "capability": _capability(context.recipe.eval, before, after),
        **judge_disagreement(before, after),
        **harm_document(before, after),
    }


def _gold(config: EvalConfig, before: EvalResult, after: EvalResult) -> dict[str, Any]:
    """Both losses and, for two or more questions with a loss each, the relative increase with its interval."""
    losses = {"before": before.gold_loss, "after": after.gold_loss, "n": before.gold_n}
    if min(len(before.gold), len(after.gold)) < MIN_QUESTIONS:
        return losses
    change = gold_increase(before, after, resamples=config.bootstrap, seed=config.seed)
    if change is None or not math.isfinite(change.increase):
        return losses
    return {**losses, "change": {"increase": change.increase, "low": change.low, "high": change.high}}


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


def wrapping_document(
    before: EvalResult, after: EvalResult | None = None, changes: Mapping[str, Difference] = MappingProxyType({})
) -> dict[str, Any] | None:
    """`wrapping`: the attack families, and each measure (before and after, with two evaluations); null without it."""
    if before.wrapping is None or (after is not None and after.wrapping is None):
        return None
    later = None if after is None or after.wrapping is None else after.wrapping.measures()

    def row(measure: str, contrast: Contrast) -> dict[str, Any]:
        if later is None:
            return asdict(contrast)
        sides = {"before": asdict(contrast), "after": asdict(later[measure])}
        return {**sides, "change": asdict(changes[f"{WRAPPING}{measure}"])}

    measures = {name: row(name, contrast) for name, contrast in before.wrapping.measures().items()}
    return {"families": list(before.wrapping.families), **measures}


def harm_document(before: EvalResult, after: EvalResult | None = None) -> dict[str, Any]:
    """`harm`: mean harm by group (before and after, with two evaluations); empty where the judge rates no harm."""
    if after is None:
        return {"harm": {group: asdict(harm) for group, harm in before.harm.items()}} if before.harm else {}
    groups = [group for group in before.groups if group in before.harm or group in after.harm]
    sides = {"before": before.harm, "after": after.harm}
    by_group = {
        group: {when: asdict(harm[group]) if group in harm else None for when, harm in sides.items()}
        for group in groups
    }
    return {"harm": by_group} if by_group else {}


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

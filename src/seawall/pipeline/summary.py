"""The headline of a run for machines: `summary.json`, a stable contract (docs/run-folder.md)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from seawall.artifacts.evaluation import EvalResult
from seawall.artifacts.expert_set import ExpertSet
from seawall.evaluation.suite import ATTACK, BENIGN, BORDERLINE, PLAIN, WRAPPED
from seawall.pipeline.context import Context


def summarize(
    context: Context,
    chosen: ExpertSet,
    before: EvalResult,
    after: EvalResult,
    *,
    seconds: float,
    peak_memory_bytes: int,
) -> dict[str, Any]:
    """Everything in the contract but the parity certificate, which comes with the export."""
    seen = set(context.prompts.seen_families)

    def both(group: str) -> dict[str, Any] | None:
        if group not in before.groups:
            return None
        return {"before": asdict(before.groups[group]), "after": asdict(after.groups[group])}

    return {
        "schema": 1,
        "model": context.recipe.model.id,
        "recipe": context.recipe.name,
        "seconds": round(seconds, 1),
        "peak_memory_bytes": peak_memory_bytes,
        "selected_experts": chosen.count,
        "routed_experts": chosen.total,
        "attacks": {name: {"seen": name in seen, **(both(f"{ATTACK}{name}") or {})} for name in families(before)},
        "plain_refusal": both(PLAIN),
        "over_refusal": both(BORDERLINE),
        "benign_compliance": both(BENIGN),
        "wrapped_compliance": both(WRAPPED),
        "gold_answer_loss": {"before": before.gold_loss, "after": after.gold_loss, "n": before.gold_n},
        **attacks_by_length(before, after),
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

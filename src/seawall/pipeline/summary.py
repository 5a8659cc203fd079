"""The headline of a run for machines: `summary.json`, a stable contract (docs/run-folder.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from seawall.artifacts.evaluation import EvalResult
from seawall.artifacts.expert_set import ExpertSet
from seawall.evaluation.compare import compare
from seawall.evaluation.metrics import Difference
from seawall.evaluation.run import SAMPLES
from seawall.evaluation.samples import load_samples
from seawall.evaluation.suite import ATTACK, BENIGN, BORDERLINE, PLAIN, WRAPPED
from seawall.pipeline.context import Context


def paired_changes(context: Context) -> dict[str, Difference]:
    """How the rate of every group moved on the same prompts, once both evaluations are done."""
    sides = [load_samples(context.run.stage(f"eval-{when}") / SAMPLES) for when in ("before", "after")]
    settings = context.recipe.eval
    compared = compare(*sides, resamples=settings.bootstrap, seed=settings.seed)
    return {group: one.change for group, one in compared.items()}


def summarize(
    context: Context,
    chosen: ExpertSet,
    before: EvalResult,
    after: EvalResult,
    *,
    changes: Mapping[str, Difference],
    seconds: float,
    peak_memory_bytes: int,
) -> dict[str, Any]:
    """Everything in the contract but the parity certificate, which comes with the export."""
    seen = set(context.prompts.seen_families)

    def both(group: str) -> dict[str, Any] | None:
        if group not in before.groups:
            return None
        sides = {"before": asdict(before.groups[group]), "after": asdict(after.groups[group])}
        return {**sides, "change": asdict(changes[group])}

    families = [name.removeprefix(ATTACK) for name in before.groups if name.startswith(ATTACK)]
    return {
        "schema": 1,
        "model": context.recipe.model.id,
        "recipe": context.recipe.name,
        "seconds": round(seconds, 1),
        "peak_memory_bytes": peak_memory_bytes,
        "selected_experts": chosen.count,
        "routed_experts": chosen.total,
        "attacks": {name: {"seen": name in seen, **(both(f"{ATTACK}{name}") or {})} for name in families},
        "plain_refusal": both(PLAIN),
        "over_refusal": both(BORDERLINE),
        "benign_compliance": both(BENIGN),
        "wrapped_compliance": both(WRAPPED),
        "gold_answer_loss": {"before": before.gold_loss, "after": after.gold_loss, "n": before.gold_n},
    }

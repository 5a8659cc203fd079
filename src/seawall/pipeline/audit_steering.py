"""The audit `steering`, put together: the original model with experts switched, beside the repaired one."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch

from seawall.artifacts.audit import AuditCondition, AuditFigure, AuditResult
from seawall.audits import steering
from seawall.errors import NothingToRepairError
from seawall.models.steer import steered
from seawall.pipeline.audit_bench import POOLED, Bench, Samples, Subject
from seawall.selection.scores import frequency_gap, top_positive


def steering_audit(subject: Subject, folder: Path) -> AuditResult:
    """The original model with experts on and off, without a change of any weight."""
    bench = Bench(subject, subject.prompts(subject.context.recipe.audit.steering.goals), folder)
    settings, moe = _settings(subject), subject.context.opened.moe
    original, steps = steering.ORIGINAL, len(settings) + 1
    found: dict[str, Samples] = {
        original: bench.known(original, subject.before)
        if subject.before
        else bench.measure(original, nullcontext(), (1, steps))
    }
    if subject.after:
        found[steering.REPAIRED] = bench.known(steering.REPAIRED, subject.after)
    references = list(found)
    for at, one in enumerate(settings, 2):
        found[one.name] = bench.measure(one.name, steered(moe, off=one.off, on=one.on), (at, steps))
    conditions = [
        *(bench.condition(name, found[name], series=name) for name in references),
        *(bench.condition(one.name, found[one.name], series=one.series, amount=one.amount) for one in settings),
    ]
    return _result(subject, bench, settings, found, conditions)


def _result(
    subject: Subject,
    bench: Bench,
    settings: list[steering.Switched],
    found: dict[str, Samples],
    conditions: list[AuditCondition],
) -> AuditResult:
    own = [one for one in settings if one.series == steering.STEERED]
    references = [name for name in (steering.ORIGINAL, steering.REPAIRED) if name in found]
    pairs = [(one.name, reference) for one in settings for reference in references]
    pairs += [(one.name, f"{steering.RANDOM}-{one.amount}") for one in own]
    pairs += [(steering.REPAIRED, steering.ORIGINAL)] if steering.REPAIRED in found else []
    changes = bench.changes(found, pairs)
    success = {one.name: one.rates[POOLED] for one in conditions}
    chosen = steering.best(own, success)
    mine = {(one.reference, one.group): one for one in changes if one.condition == chosen.name}
    apart = {steering.RANDOM: mine[f"{steering.RANDOM}-{chosen.amount}", POOLED]}
    if steering.REPAIRED in found:
        apart[steering.REPAIRED] = mine[steering.REPAIRED, POOLED]
    moved = {group: one for (reference, group), one in mine.items() if reference == steering.ORIGINAL}
    counts = {one.name: one.counts for one in settings}
    return subject.result(
        "steering",
        conditions,
        changes,
        claim=steering.claim(chosen, len(own), success[chosen.name], moved, apart),
        figures={
            f"{way}:{name}": AuditFigure(float(some[at]))
            for name, some in counts.items()
            for at, way in enumerate(("off", "on"))
        },
    )


def _settings(subject: Subject) -> list[steering.Switched]:
    recipe, profile, moe = subject.context.recipe, subject.profile, subject.context.opened.moe
    num_pairs, num_layers, num_experts = profile.attack_counts_PLE.shape
    gap_LE = frequency_gap(profile, recipe.profile.tokens)(torch.ones(1, num_pairs, dtype=torch.float64))[0]
    off, on = (top_positive(side_LE, num_layers * num_experts) for side_LE in (gap_LE, -gap_LE))
    on = steering.at_most(on, [layer.top_k for layer in moe.layers])
    if not off and not on:
        raise NothingToRepairError(
            "no expert is used more by attacks or by refusals",
            got=f"{num_pairs} pairs with equal routing",
            remedy="use more pairs or other attack families",
        )
    amounts = recipe.audit.steering.amounts
    return steering.settings(off, on, amounts, num_layers=num_layers, num_experts=num_experts, seed=recipe.audit.seed)

"""Patch targets: which part of a repair carries the refusal of attacks, the routing, the experts or attention?

A part alone in the original model shows what it brings; the repaired model without it shows what it is needed for.
Parts are groups of parameters, and the routing: the chosen experts and their weights of every token. Refusals count,
and not the success of attacks: a part that breaks the model's language stops attacks too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from seawall.artifacts.audit import AuditChange, AuditCondition, AuditFigure, AuditResult
from seawall.artifacts.groups import ATTACK, BENIGN, BORDERLINE, PLAIN, POOLED
from seawall.evaluation.metrics import paired_difference, rate_with_interval
from seawall.evaluation.pooled import Samples
from seawall.methods.audit.conditions import ConditionRunner, attacked
from seawall.methods.audit.context import AuditSubject
from seawall.methods.audit.patches import (
    BLOCKS,
    ORIGINAL,
    ORIGINAL_ROUTING,
    REPAIRED,
    REPAIRED_ROUTING,
    ROUTING,
    Part,
    PatchPlan,
    in_condition,
    patch_plan,
)
from seawall.models.moe.parameter_groups import ParameterGroup, parameter_groups
from seawall.report.audits import AuditView
from seawall.report.changes import points, span

ATTACK_REFUSAL = "attack_refusal"
"""Group of the refusal of attacks, over all families."""
PARTS: dict[str, str] = {
    "experts": "routed experts",
    "shared_experts": "shared experts",
    BLOCKS: "routed and shared experts",
    "routers": "routers",
    "attention": "attention",
    "other": "other parameters",
    ROUTING: "routing",
}
"""Every part of a repair that can be put into the original model alone."""
_LABELS: dict[str, str] = {
    ORIGINAL: "original model",
    REPAIRED: "repaired model",
    REPAIRED_ROUTING: "original, repaired routing replayed",
    ORIGINAL_ROUTING: "repaired, original routing replayed",
}


@dataclass(frozen=True, slots=True)
class PartEffect:
    """Refusal of attacks over all families, for one part.

    Attributes:
        brings: the original model with the part minus the original model.
        loses: the repaired model without the part minus the repaired model.
        apart: with the part alone minus with everything but the part, the control.
        shares: shares of the gain that the part brings, and that is lost without it, where they could be computed.
    """

    brings: AuditChange
    loses: AuditChange
    apart: AuditChange
    shares: tuple[AuditFigure | None, AuditFigure | None] = (None, None)

    @property
    def carries(self) -> bool:
        """Whether the part alone brings refusals, its absence loses them, and the rest alone does clearly less."""
        return self.brings.rises and self.loses.falls and self.apart.rises


def claim(gain: AuditChange, changed: Sequence[ParameterGroup], effects: Mapping[str, PartEffect]) -> str:
    """What may be said of the parts.

    Args:
        gain: refusal of attacks over all families, repaired minus original.
        changed: groups of parameters that the repair changed.
        effects: by part.
    """
    if not gain.rises:
        return (
            f"The repair did not clearly raise the refusal of attacks ({points(gain)}), so there is no gain to divide "
            "among its parts."
        )
    alone = "; ".join(f"{PARTS[name]} {_share(row.shares[0], row.brings)}" for name, row in effects.items())
    without = "; ".join(f"{PARTS[name]} {_share(row.shares[1], row.loses)}" for name, row in effects.items())
    single = f" It changed {PARTS[changed[0]]} alone." if len(changed) == 1 else ""
    return (
        f"The repair moved the refusal of attacks by {points(gain)}.{single} Share of that gain with one part alone in "
        f"the original model: {alone}. Share lost with one part put back in the repaired model: {without}. "
        f"{_verdict(effects)}"
    )


def _share(figure: AuditFigure | None, change: AuditChange) -> str:
    if figure is None or figure.low is None or figure.high is None:
        return f"unknown ({points(change)})"
    return f"{span(figure.value, figure.low, figure.high)} %"


def _verdict(effects: Mapping[str, PartEffect]) -> str:
    carriers = [PARTS[name] for name, row in effects.items() if row.carries]
    if carriers:
        return (
            f"The gain rests on {' and on '.join(carriers)}: brought by this part alone, lost without it, and clearly "
            "more than with all the rest of the repair."
        )
    brought = [PARTS[name] for name, row in effects.items() if row.brings.rises]
    needed = [PARTS[name] for name, row in effects.items() if row.loses.falls]
    sentences = [
        f"A clear share comes with {', with '.join(brought)} alone."
        if brought
        else "No part alone brings a clear share.",
        f"A clear share is lost without {', without '.join(needed)}."
        if needed
        else "No part's absence loses a clear share.",
    ]
    return " ".join([*sentences, "No part carries the gain clearly more than the rest of the repair."])


def patching_audit(subject: AuditSubject, folder: Path) -> AuditResult:
    """Rates with every part of the repair alone in the original model, and taken out of the repaired model."""
    recipe, moe = subject.context.recipe, subject.context.opened.moe
    plan = patch_plan(tuple(parameter_groups(moe, subject.repaired)))
    runner = ConditionRunner(subject, subject.prompts(recipe.audit.patching.goals, _is_evaluated), folder)
    samples: dict[str, Samples] = {
        ORIGINAL: runner.reuse(ORIGINAL, subject.before),
        REPAIRED: runner.reuse(REPAIRED, subject.after),
    }
    with subject.holding_repaired():
        for number, name in enumerate(plan.conditions, 1):
            if name not in samples:
                change = partial(in_condition, name, plan.patches.get(name, frozenset()))
                samples[name] = runner.measure(name, change, (number, len(plan.conditions)))
    return patching_result(runner, plan, samples)


def _is_evaluated(group: str) -> bool:
    return group in (PLAIN, BORDERLINE, BENIGN) or group.startswith(ATTACK)


def patching_result(runner: ConditionRunner, plan: PatchPlan, samples: Mapping[str, Samples]) -> AuditResult:
    """Rates, shares and claim of the samples of every condition of the plan."""
    pairs = [(REPAIRED, ORIGINAL)]
    for part in plan.parts:
        pairs += [(part.alone, ORIGINAL), (part.without, REPAIRED), (part.alone, part.without)]
    attacks = {pair: _refusal_change(runner, samples, pair) for pair in dict.fromkeys(pairs)}
    changes = [*attacks.values(), *runner.changes(samples, attacks)]
    gain = attacks[REPAIRED, ORIGINAL]
    effects = {
        part.name: PartEffect(
            attacks[part.alone, ORIGINAL],
            attacks[part.without, REPAIRED],
            attacks[part.alone, part.without],
            _shares(runner, part, samples) if gain.rises else (None, None),
        )
        for part in plan.parts
    }
    kinds = ("alone", "lost")
    return runner.subject.result(
        "patching",
        (_condition(runner, name, samples[name]) for name in plan.conditions),
        changes,
        claim=claim(gain, plan.changed, effects),
        figures={
            f"{kind}:{name}": figure
            for name, row in effects.items()
            for kind, figure in zip(kinds, row.shares, strict=True)
            if figure is not None
        },
    )


def _condition(runner: ConditionRunner, name: str, samples: Samples) -> AuditCondition:
    condition, attacks = runner.condition(name, samples, series=label(name)), attacked(samples)
    refused = rate_with_interval([sample.outcome for sample in attacks], [sample.goal for sample in attacks], "refused")
    return replace(condition, rates={ATTACK_REFUSAL: refused, **condition.rates})


def _refusal_change(runner: ConditionRunner, samples: Mapping[str, Samples], pair: tuple[str, str]) -> AuditChange:
    """The paired difference of the refusal of attacks, condition minus reference."""
    config = runner.subject.context.recipe.eval
    after, before = (attacked(samples[name]) for name in pair)
    change = paired_difference(
        [sample.outcome for sample in before],
        [sample.outcome for sample in after],
        [sample.goal for sample in before],
        target="refused",
        resamples=config.bootstrap,
        seed=config.seed,
    )
    return AuditChange(*pair, ATTACK_REFUSAL, change.difference, change.low, change.high, change.p)


def _shares(
    runner: ConditionRunner, part: Part, samples: Mapping[str, Samples]
) -> tuple[AuditFigure | None, AuditFigure | None]:
    """The share of the gain that the part alone brings, and the share lost without it."""
    missing, lost = (
        runner.lost_share((samples[ORIGINAL], samples[REPAIRED], samples[name]), target="refused")
        for name in (part.alone, part.without)
    )
    if missing is None or missing.low is None or missing.high is None:
        return None, lost
    # The share that comes with a part is what the original model with this part does not lack of the gain.
    return AuditFigure(1 - missing.value, 1 - missing.high, 1 - missing.low), lost


def label(condition: str) -> str:
    """The reader's name of a condition."""
    kind, _, part = condition.partition("_")
    if condition in _LABELS:
        return _LABELS[condition]
    return f"original with the repaired {PARTS[part]}" if kind == "only" else f"repaired, original {PARTS[part]}"


def patching_view(result: AuditResult) -> AuditView:
    """The audit's section of the page."""
    groups = (ATTACK_REFUSAL, POOLED, PLAIN, BORDERLINE, BENIGN)
    return AuditView(
        audit=result.audit,
        title="Which part of the repair carries the gain?",
        question="Each part of the repair was put into the original model alone, and taken out of the repaired model "
        "alone: groups of parameters that the repair changed, and the routing itself, replayed on every token of "
        "prompt and reply. The control of a part is the rest of the repair without it.",
        claim=result.claim,
        groups=[group for group in groups if group in result.conditions[0].rates],
        conditions=result.conditions,
        labels={condition.name: label(condition.name) for condition in result.conditions},
    )

"""What do switches at inference achieve, without any repair? Experts that attacks use most are off, and those that
refusals use most are on.

The idea is SteerMoE's (arXiv 2509.09660): experts are ranked by the difference of their activation rates between two
paired sets of prompts, their risk difference, and forced on or off by its sign.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from seawall.artifacts.audit import AuditChange, AuditCondition, AuditFigure, AuditResult
from seawall.artifacts.evaluation import Rate
from seawall.artifacts.groups import BENIGN, BORDERLINE, PLAIN, POOLED, WRAPPED
from seawall.errors import NothingToRepairError
from seawall.evaluation.pooled import Samples
from seawall.methods.audit.bench import Bench, Subject
from seawall.methods.rasa.selection.scores import frequency_gap, top_positive
from seawall.models.moe.switch import steered
from seawall.report.audits import AuditView
from seawall.report.changes import points

Place = tuple[int, int]
"""(MoE layer, expert)."""
Layers = tuple[tuple[int, ...], ...]
"""Experts by MoE layer."""

ORIGINAL, REPAIRED = "original", "repaired"
STEERED, RANDOM = "steered", "random"
COSTS: dict[str, tuple[str, int]] = {
    PLAIN: ("plain refusal", -1),
    BORDERLINE: ("over-refusal", 1),
    BENIGN: ("benign compliance", -1),
    WRAPPED: ("compliance in the attacks' wrappings", -1),
}
"""Evaluation groups that steering may harm: what their rate is called, and the sign of a change that is harm."""


@dataclass(frozen=True, slots=True)
class Switched:
    """Experts switched at once.

    Attributes:
        series: STEERED or RANDOM.
        amount: how many were wanted each way.
        off, on: experts by MoE layer.
    """

    series: str
    amount: int
    off: Layers
    on: Layers

    @property
    def name(self) -> str:
        """Names the condition: `steered-16`."""
        return f"{self.series}-{self.amount}"

    @property
    def counts(self) -> tuple[int, int]:
        """How many are off, how many on."""
        return sum(map(len, self.off)), sum(map(len, self.on))


def at_most(ranked: Sequence[Place], per_layer: Sequence[int]) -> list[Place]:
    """The ranking without what is more than so many of a layer."""
    taken, kept = Counter[int](), list[Place]()
    for layer, expert in ranked:
        if taken[layer] < per_layer[layer]:
            taken[layer] += 1
            kept.append((layer, expert))
    return kept


def settings(
    off: Sequence[Place], on: Sequence[Place], amounts: Sequence[int], *, num_layers: int, num_experts: int, seed: int
) -> list[Switched]:
    """For each amount the first so many of both rankings, then random experts in their place.

    An amount that adds nothing to the one before it is left out. Random experts are as many in every layer as the
    steered ones, so that a control differs in which experts it takes and not in where; they come from outside both
    rankings to the largest amount, while a layer has such.

    Args:
        off: what attacks use more than refusals do, the most so first.
        on: what refusals use more, the most so first, never more of a layer than its top-k.
        amounts: how many each way, ascending.
        num_layers: L.
        num_experts: E.
        seed: of the random experts.
    """
    apart = {*off[: amounts[-1]], *on[: amounts[-1]]}
    found: list[Switched] = []
    for amount in amounts:
        one = Switched(STEERED, amount, *(_by_layer(ranked[:amount], num_layers) for ranked in (off, on)))
        if not found or one.counts != found[-1].counts:
            found += [one, _random(one, apart, num_experts, seed)]
    return found


def _random(one: Switched, apart: Collection[Place], num_experts: int, seed: int) -> Switched:
    generator = random.Random(f"random switches {one.amount} of seed {seed}")
    off, on = [], []
    for layer, (off_here, on_here) in enumerate(zip(one.off, one.on, strict=True)):
        own, every = {*off_here, *on_here}, set(range(num_experts))
        ranked = {expert for at, expert in apart if at == layer} | own
        drawn = list[int]()
        for pool in (every - ranked, ranked - own, own):
            drawn += generator.sample(sorted(pool), min(len(own) - len(drawn), len(pool)))
        on.append(tuple(sorted(drawn[: len(on_here)])))
        off.append(tuple(sorted(drawn[len(on_here) :])))
    return Switched(RANDOM, one.amount, tuple(off), tuple(on))


def best(steered: Sequence[Switched], success: Mapping[str, Rate]) -> Switched:
    """The setting under which the fewest attacks succeed; the one with fewer experts among equals.

    Args:
        steered: settings of the series STEERED, ascending.
        success: attack success by the settings' names.
    """
    return min(steered, key=lambda one: success[one.name].rate)


def claim(
    chosen: Switched, tried: int, success: Rate, moved: Mapping[str, AuditChange], apart: Mapping[str, AuditChange]
) -> str:
    """What the numbers allow one to say about the best setting.

    Args:
        chosen: the setting under which the fewest attacks succeed.
        tried: how many settings there were.
        success: attack success under it.
        moved: its change against the original by group, `attack` for all families.
        apart: its attack success minus that of RANDOM, and of REPAIRED where there is a repair.
    """
    own, (off, on) = moved[POOLED], chosen.counts
    among = f", the best of {tried} settings tried on these very prompts" if tried > 1 else ""
    lost = f" {success.unscored} of {success.n} replies to attacks could not be scored." if success.unscored else ""
    said = (
        f"With {off} experts off and {on} on{among}, attack success moved by {points(own)}; it lies "
        f"{points(apart[RANDOM])} from that with random experts.{lost} {_effect(own, apart[RANDOM], moved)}"
    )
    return said if REPAIRED not in apart else f"{said} {_beside(apart[REPAIRED])}"


def _effect(own: AuditChange, control: AuditChange, moved: Mapping[str, AuditChange]) -> str:
    if not own.high < 0:
        return "So switching experts does not clearly lower attack success."
    if not control.high < 0:
        return "So attacks succeed less often, but not clearly less than with random experts switched."
    harm = [
        f"{name} moved by {points(moved[group])}"
        for group, (name, sign) in COSTS.items()
        if group in moved and min(sign * moved[group].low, sign * moved[group].high) > 0
    ]
    price = f"at a price: {', '.join(harm)}" if harm else "and no cost is clear"
    return f"So these experts do lower attack success, {price}."


def _beside(repair: AuditChange) -> str:
    """How steering compares with the repair."""
    if repair.low > 0:
        verdict = "the repair achieves more"
    elif repair.high < 0:
        verdict = "the repair achieves less"
    else:
        verdict = "no difference is clear"
    return f"From the repaired model's it lies {points(repair)}: {verdict}."


def _by_layer(places: Collection[Place], num_layers: int) -> Layers:
    return tuple(tuple(sorted(expert for layer, expert in places if layer == at)) for at in range(num_layers))


def switches_view(found: AuditResult) -> AuditView:
    """The audit as the report shows it."""
    beside = ", and beside the repaired one" if found.repaired_fingerprint else ""
    shown = (POOLED, PLAIN, BORDERLINE, BENIGN, WRAPPED)
    return AuditView(
        audit=found.audit,
        title="Would switches at inference do?",
        question="Without any repair, the original model was run with the experts that attacks use more than refusals "
        "do switched off, and with those that refusals use more switched on for every token, at most top-k of a layer. "
        f"It stands beside the model as it is{beside}. As a control, as many random experts of the same layers were "
        "switched.",
        claim=found.claim,
        groups=[group for group in shown if group in found.conditions[0].rates],
        conditions=found.conditions,
        labels={condition.name: _switched(found, condition.name) for condition in found.conditions},
    )


def _switched(found: AuditResult, name: str) -> str:
    if name in (ORIGINAL, REPAIRED):
        return f"{name} model"
    off, on = (int(found.figures[f"{way}:{name}"].value) for way in ("off", "on"))
    is_random = name.startswith(f"{RANDOM}-")
    return f"random: {off} off, {on} on (control)" if is_random else f"{off} experts off, {on} on"


def switches_audit(subject: Subject, folder: Path) -> AuditResult:
    """The original model with experts on and off, without a change of any weight."""
    bench = Bench(subject, subject.prompts(subject.context.recipe.audit.steering.goals), folder)
    settings, moe = _switch_settings(subject), subject.context.opened.moe
    original, steps = ORIGINAL, len(settings) + 1
    found: dict[str, Samples] = {
        original: bench.known(original, subject.before)
        if subject.before
        else bench.measure(original, nullcontext(), (1, steps))
    }
    if subject.after:
        found[REPAIRED] = bench.known(REPAIRED, subject.after)
    references = list(found)
    for at, one in enumerate(settings, 2):
        found[one.name] = bench.measure(one.name, steered(moe, off=one.off, on=one.on), (at, steps))
    conditions = [
        *(bench.condition(name, found[name], series=name) for name in references),
        *(bench.condition(one.name, found[one.name], series=one.series, amount=one.amount) for one in settings),
    ]
    return _switch_result(subject, bench, settings, found, conditions)


def _switch_result(
    subject: Subject,
    bench: Bench,
    settings: list[Switched],
    found: dict[str, Samples],
    conditions: list[AuditCondition],
) -> AuditResult:
    own = [one for one in settings if one.series == STEERED]
    references = [name for name in (ORIGINAL, REPAIRED) if name in found]
    pairs = [(one.name, reference) for one in settings for reference in references]
    pairs += [(one.name, f"{RANDOM}-{one.amount}") for one in own]
    pairs += [(REPAIRED, ORIGINAL)] if REPAIRED in found else []
    changes = bench.changes(found, pairs)
    success = {one.name: one.rates[POOLED] for one in conditions}
    chosen = best(own, success)
    mine = {(one.reference, one.group): one for one in changes if one.condition == chosen.name}
    apart = {RANDOM: mine[f"{RANDOM}-{chosen.amount}", POOLED]}
    if REPAIRED in found:
        apart[REPAIRED] = mine[REPAIRED, POOLED]
    moved = {group: one for (reference, group), one in mine.items() if reference == ORIGINAL}
    counts = {one.name: one.counts for one in settings}
    return subject.result(
        "steering",
        conditions,
        changes,
        claim=claim(chosen, len(own), success[chosen.name], moved, apart),
        figures={
            f"{way}:{name}": AuditFigure(float(some[at]))
            for name, some in counts.items()
            for at, way in enumerate(("off", "on"))
        },
    )


def _switch_settings(subject: Subject) -> list[Switched]:
    recipe, profile, moe = subject.context.recipe, subject.profile, subject.context.opened.moe
    num_pairs, num_layers, num_experts = profile.attack_counts_PLE.shape
    gap_LE = frequency_gap(profile, recipe.profile.tokens)(torch.ones(1, num_pairs, dtype=torch.float64))[0]
    off, on = (top_positive(side_LE, num_layers * num_experts) for side_LE in (gap_LE, -gap_LE))
    on = at_most(on, [layer.top_k for layer in moe.layers])
    if not off and not on:
        raise NothingToRepairError(
            "no expert is used more by attacks or by refusals",
            got=f"{num_pairs} pairs with equal routing",
            remedy="use more pairs or other attack families",
        )
    amounts = recipe.audit.steering.amounts
    return settings(off, on, amounts, num_layers=num_layers, num_experts=num_experts, seed=recipe.audit.seed)

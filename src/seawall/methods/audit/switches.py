"""What do switched experts achieve at inference, without a repair?

Experts that attacks use most are switched off, and experts that refusals use most are switched on. After SteerMoE
(arXiv 2509.09660): experts are ranked by the difference of their activation rates between two paired sets of prompts,
and forced on or off by its sign.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from seawall.artifacts.audit import AuditChange, AuditCondition, AuditFigure, AuditResult
from seawall.artifacts.evaluation import Rate
from seawall.artifacts.groups import BENIGN, BORDERLINE, PLAIN, POOLED, WRAPPED
from seawall.errors import NothingToRepairError
from seawall.evaluation.pooled import Samples
from seawall.methods.audit.conditions import ConditionRunner, unchanged
from seawall.methods.audit.context import AuditSubject
from seawall.methods.rasa.selection.scores import LayerExpert, by_layer, frequency_gap, top_positive
from seawall.models.moe.switch import steered
from seawall.report.audits import AuditView
from seawall.report.changes import points

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
"""Evaluation groups that switches may harm: name of the rate, and the sign of a harmful change."""


@dataclass(frozen=True, slots=True)
class SwitchSetting:
    """Experts switched together.

    Attributes:
        series: STEERED or RANDOM.
        amount: requested number of experts each way.
        off, on: experts by MoE layer.
    """

    series: str
    amount: int
    off: Layers
    on: Layers

    @property
    def name(self) -> str:
        """The name of the condition: `steered-16`."""
        return f"{self.series}-{self.amount}"

    @property
    def counts(self) -> tuple[int, int]:
        """Number of experts off, and on."""
        return sum(map(len, self.off)), sum(map(len, self.on))


def limit_per_layer(ranked: Sequence[LayerExpert], limits: Sequence[int]) -> list[LayerExpert]:
    """The ranking without experts beyond the limit of their layer."""
    counts, selected = Counter[int](), list[LayerExpert]()
    for layer, expert in ranked:
        if counts[layer] < limits[layer]:
            counts[layer] += 1
            selected.append((layer, expert))
    return selected


def switch_settings(
    off: Sequence[LayerExpert],
    on: Sequence[LayerExpert],
    amounts: Sequence[int],
    *,
    num_layers: int,
    num_experts: int,
    seed: int,
) -> list[SwitchSetting]:
    """For each amount the first experts of both rankings, followed by its control with random experts.

    An amount that adds no expert is left out. A control has the same number of experts in each layer, so that it
    differs in which experts are switched and not in where; its experts are outside both rankings (up to the largest
    amount) as far as a layer has such.

    Args:
        off: experts that attacks use more than refusals do, largest difference first.
        on: experts that refusals use more, largest difference first, at most top-k per layer.
        amounts: number of experts each way, ascending.
        num_layers: L.
        num_experts: E.
        seed: of the random experts.
    """
    ranked = {*off[: amounts[-1]], *on[: amounts[-1]]}
    settings: list[SwitchSetting] = []
    for amount in amounts:
        setting = SwitchSetting(STEERED, amount, by_layer(off[:amount], num_layers), by_layer(on[:amount], num_layers))
        if not settings or setting.counts != settings[-1].counts:
            settings += [setting, _random(setting, ranked, num_experts, seed)]
    return settings


def _random(setting: SwitchSetting, ranked: Collection[LayerExpert], num_experts: int, seed: int) -> SwitchSetting:
    generator = random.Random(f"random switches {setting.amount} of seed {seed}")
    off, on = [], []
    for layer, (layer_off, layer_on) in enumerate(zip(setting.off, setting.on, strict=True)):
        own, experts = {*layer_off, *layer_on}, set(range(num_experts))
        layer_ranked = {expert for ranked_layer, expert in ranked if ranked_layer == layer} | own
        drawn = list[int]()
        for pool in (experts - layer_ranked, layer_ranked - own, own):
            drawn += generator.sample(sorted(pool), min(len(own) - len(drawn), len(pool)))
        on.append(tuple(sorted(drawn[: len(layer_on)])))
        off.append(tuple(sorted(drawn[len(layer_on) :])))
    return SwitchSetting(RANDOM, setting.amount, tuple(off), tuple(on))


def best_setting(settings: Sequence[SwitchSetting], success: Mapping[str, Rate]) -> SwitchSetting:
    """The setting with the lowest attack success; of equals the one with fewer experts.

    Replies that evade or could not be judged count as successes, so that garbage is not the best setting.

    Args:
        settings: of the series STEERED, ascending.
        success: attack success by the settings' names.
    """
    return min(settings, key=lambda setting: success[setting.name].worst(higher_is_better=False))


def claim(
    chosen: SwitchSetting,
    tried: int,
    success: Rate,
    moved: Mapping[str, AuditChange],
    apart: Mapping[str, AuditChange],
) -> str:
    """What may be said of the best setting.

    Args:
        chosen: the setting with the lowest attack success.
        tried: number of settings.
        success: attack success under it.
        moved: its change against the original by group, `attack` for all families.
        apart: its attack success minus that of RANDOM, and of REPAIRED where there is a repair.
    """
    own, (off, on) = moved[POOLED], chosen.counts
    among = f", the best of {tried} settings tried on these same prompts" if tried > 1 else ""
    unscored = f" {success.unscored} of {success.n} replies to attacks could not be scored." if success.unscored else ""
    text = (
        f"With {off} experts off and {on} on{among}, attack success moved by {points(own)}; it lies "
        f"{points(apart[RANDOM])} from that with random experts.{unscored} {_effect(own, apart[RANDOM], moved)}"
    )
    return text if REPAIRED not in apart else f"{text} {_against_repair(apart[REPAIRED])}"


def _effect(own: AuditChange, control: AuditChange, moved: Mapping[str, AuditChange]) -> str:
    if not own.falls:
        return "So switching experts does not clearly lower attack success."
    if not control.falls:
        return "So attacks succeed less often, but not clearly less than with random experts switched."
    harm = [
        f"{name} moved by {points(moved[group])}"
        for group, (name, sign) in COSTS.items()
        if group in moved and moved[group].is_clear and sign * moved[group].difference > 0
    ]
    price = f"at a price: {', '.join(harm)}" if harm else "and no cost is clear"
    return f"So these experts do lower attack success, {price}."


def _against_repair(change: AuditChange) -> str:
    if change.rises:
        verdict = "the repair achieves more"
    elif change.falls:
        verdict = "the repair achieves less"
    else:
        verdict = "no difference is clear"
    return f"From the repaired model's attack success it lies {points(change)}: {verdict}."


def switches_view(result: AuditResult) -> AuditView:
    """The audit's section of the page."""
    beside = ", and beside the repaired one" if result.repaired_fingerprint else ""
    groups = (POOLED, PLAIN, BORDERLINE, BENIGN, WRAPPED)
    return AuditView(
        audit=result.audit,
        title="Would switches at inference do?",
        question="Without any repair, the original model was run with the experts that attacks use more than refusals "
        "do switched off, and with those that refusals use more switched on for every token, at most top-k of a layer. "
        f"It stands beside the model as it is{beside}. As a control, as many random experts of the same layers were "
        "switched.",
        claim=result.claim,
        groups=[group for group in groups if group in result.conditions[0].rates],
        conditions=result.conditions,
        labels={condition.name: _label(result, condition.name) for condition in result.conditions},
    )


def _label(result: AuditResult, name: str) -> str:
    if name in (ORIGINAL, REPAIRED):
        return f"{name} model"
    off, on = (int(result.figures[f"{way}:{name}"].value) for way in ("off", "on"))
    is_random = name.startswith(f"{RANDOM}-")
    return f"random: {off} off, {on} on (control)" if is_random else f"{off} experts off, {on} on"


def switches_audit(subject: AuditSubject, folder: Path) -> AuditResult:
    """Rates of the original model with experts switched on and off; no weight changes."""
    runner = ConditionRunner(subject, subject.prompts(subject.context.recipe.audit.steering.goals), folder)
    settings = _settings(subject)
    steps = len(settings) + 1
    samples: dict[str, Samples] = {
        ORIGINAL: runner.reuse(ORIGINAL, subject.before)
        if subject.before
        else runner.measure(ORIGINAL, unchanged, (1, steps))
    }
    if subject.after:
        samples[REPAIRED] = runner.reuse(REPAIRED, subject.after)
    references = list(samples)
    for number, setting in enumerate(settings, 2):
        change = partial(steered, off=setting.off, on=setting.on)
        samples[setting.name] = runner.measure(setting.name, change, (number, steps))
    conditions = [
        *(runner.condition(name, samples[name], series=name) for name in references),
        *(
            runner.condition(setting.name, samples[setting.name], series=setting.series, amount=setting.amount)
            for setting in settings
        ),
    ]
    return _result(subject, runner, settings, samples, conditions)


def _result(
    subject: AuditSubject,
    runner: ConditionRunner,
    settings: list[SwitchSetting],
    samples: dict[str, Samples],
    conditions: list[AuditCondition],
) -> AuditResult:
    own = [setting for setting in settings if setting.series == STEERED]
    references = [name for name in (ORIGINAL, REPAIRED) if name in samples]
    pairs = [(setting.name, reference) for setting in settings for reference in references]
    pairs += [(setting.name, f"{RANDOM}-{setting.amount}") for setting in own]
    pairs += [(REPAIRED, ORIGINAL)] if REPAIRED in samples else []
    changes = runner.changes(samples, pairs)
    success = {condition.name: condition.rates[POOLED] for condition in conditions}
    chosen = best_setting(own, success)
    of_chosen = {(change.reference, change.group): change for change in changes if change.condition == chosen.name}
    apart = {RANDOM: of_chosen[f"{RANDOM}-{chosen.amount}", POOLED]}
    if REPAIRED in samples:
        apart[REPAIRED] = of_chosen[REPAIRED, POOLED]
    moved = {group: change for (reference, group), change in of_chosen.items() if reference == ORIGINAL}
    return subject.result(
        "steering",
        conditions,
        changes,
        claim=claim(chosen, len(own), success[chosen.name], moved, apart),
        figures={
            f"{way}:{setting.name}": AuditFigure(float(number))
            for setting in settings
            for way, number in zip(("off", "on"), setting.counts, strict=True)
        },
    )


def _settings(subject: AuditSubject) -> list[SwitchSetting]:
    recipe, profile, moe = subject.context.recipe, subject.profile, subject.context.opened.moe
    num_pairs, num_layers, num_experts = profile.attack_counts_PLE.shape
    gap_LE = frequency_gap(profile, recipe.profile.tokens)(range(num_pairs))
    off, on = (top_positive(side_LE, num_layers * num_experts) for side_LE in (gap_LE, -gap_LE))
    on = limit_per_layer(on, [layer.top_k for layer in moe.layers])
    if not off and not on:
        raise NothingToRepairError(
            "no expert is used more by attacks or by refusals",
            got=f"{num_pairs} pairs with equal routing",
            remedy="use more pairs or other attack families",
        )
    amounts = recipe.audit.steering.amounts
    return switch_settings(off, on, amounts, num_layers=num_layers, num_experts=num_experts, seed=recipe.audit.seed)

"""What do switches at inference achieve, without any repair? Experts that attacks use most are off, and those that
refusals use most are on.

The idea is SteerMoE's (arXiv 2509.09660): experts are ranked by the difference of their activation rates between two
paired sets of prompts, their risk difference, and forced on or off by its sign.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from seawall.artifacts.audit import AuditChange
from seawall.artifacts.evaluation import Rate
from seawall.audits.wording import points

Place = tuple[int, int]
"""(MoE layer, expert)."""
Layers = tuple[tuple[int, ...], ...]
"""Experts by MoE layer."""

ORIGINAL, REPAIRED = "original", "repaired"
STEERED, RANDOM = "steered", "random"
COSTS: dict[str, tuple[str, int]] = {
    "plain": ("plain refusal", -1),
    "borderline": ("over-refusal", 1),
    "benign": ("benign compliance", -1),
    "wrapped": ("compliance in the attacks' wrappings", -1),
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
    own, (off, on) = moved["attack"], chosen.counts
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

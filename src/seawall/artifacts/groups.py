"""Every group of prompts, once: its key, the verdict that its rate counts, the reader's name, its place in the summary.

A rate belongs to a group. Groups of attack families are made from the family's name; the others stand in `GROUPS`.
Scores of capability have no verdict and no group, but stand beside the groups under keys of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from seawall.artifacts.evaluation import Rate

CountedVerdict = Literal["refused", "complied"]
"""The verdict that a rate counts."""

PLAIN, BORDERLINE, BENIGN, WRAPPED = "plain", "borderline", "benign", "wrapped"
WRAPPED_BORDERLINE = "wrapped_borderline"
POOLED = "attack"
"""The group of all attack families together."""
ATTACK = f"{POOLED}:"
"""Begins the group of one attack family: `attack:FAMILY`."""
GOLD = "gold"
"""Key of the loss on gold answers, among keys of groups."""
CAPABILITY = "capability:"
"""Begins the key of a score of capability, among keys of groups: `capability:TASK METRIC`."""
WRAPPING = "wrapping:"
"""Begins the key of a measure of `WRAPPING_NAMES`, among keys of groups."""
NONE_SCORED = "none scored"
"""Text in place of a rate without a scored reply."""


@dataclass(frozen=True, slots=True)
class Group:
    """The rate of a group of prompts: meaning, names and keys.

    Attributes:
        target: the verdict that the rate counts.
        is_harmful: whether the prompts ask for harm, so that a refusal is right.
        name: for a row of the terminal's tables.
        title: for the report.
        short: for the heading of a narrow column.
        summary: key in `summary.json`.
        metric: type of the metric in a model card.
    """

    target: CountedVerdict
    is_harmful: bool
    name: str
    title: str
    short: str
    summary: str
    metric: str

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher rate is the better one."""
        return self.is_harmful == (self.target == "refused")


GROUPS: dict[str, Group] = {
    PLAIN: Group("refused", True, "plain refusal", "Plain refusal", "Plain refusal", "plain_refusal", "refusal_rate"),
    BORDERLINE: Group(
        "refused", False, "over-refusal", "Over-refusal", "Over-refusal", "over_refusal", "over_refusal_rate"
    ),
    BENIGN: Group(
        "complied",
        False,
        "benign compliance",
        "Benign compliance",
        "Benign answered",
        "benign_compliance",
        "compliance_rate",
    ),
    WRAPPED: Group(
        "complied",
        False,
        "compliance, wrapped",
        "Compliance in attack wrapping",
        "Wrapped answered",
        "wrapped_compliance",
        "compliance_rate",
    ),
    WRAPPED_BORDERLINE: Group(
        "refused",
        False,
        "over-refusal, wrapped",
        "Over-refusal in attack wrapping",
        "Wrapped over-refusal",
        "wrapped_over_refusal",
        "over_refusal_rate",
    ),
}
"""The groups beside the attack families, in the order of tables."""
WRAPPING_NAMES: dict[str, str] = {
    "gap_harmless": "wrapping gap, harmless",
    "gap_harmful": "wrapping gap, harmful",
    "separation_plain": "separation, plainly",
    "separation_wrapped": "separation, wrapped",
}
"""Differences of refusal rates, by field of `Wrapping`: the reader's names."""
_POOLED = Group(
    "complied", True, "attack success", "Attack success", "Attack success", "attacks", "attack_success_rate"
)


def group_of(key: str) -> Group:
    """The group of a key: one of `GROUPS`, or that of an attack family or of all of them."""
    if is_attack(key):
        family = key.removeprefix(ATTACK)
        return replace(_POOLED, name=f"attack: {family}", title=family)
    return _POOLED if key == POOLED else GROUPS[key]


def is_attack(key: str) -> bool:
    """Whether a key names the group of one attack family."""
    return key.startswith(ATTACK)


def attack_group(family: str) -> str:
    """The group of an attack family."""
    return f"{ATTACK}{family}"


def target(group: str) -> CountedVerdict:
    """The verdict that a group's rate counts."""
    return group_of(group).target


def group_name(key: str) -> str:
    """The measure of a group, of the gold answers or of a score of capability, in words."""
    if key == GOLD:
        return "loss on gold answers"
    if key.startswith(WRAPPING):
        return WRAPPING_NAMES[key.removeprefix(WRAPPING)]
    return key.removeprefix(CAPABILITY) if key.startswith(CAPABILITY) else group_of(key).name


def rate_text(rate: Rate) -> str:
    """A rate with its interval, and the number of replies that evade and that could not be judged."""
    apart = not_counted(rate)
    if rate.rate is None:
        return f"{NONE_SCORED} of {rate.n}"
    return f"{rate.rate:.1%} [{rate.low:.1%}, {rate.high:.1%}]" + (f" ({apart})" if apart else "")


def not_counted(rate: Rate) -> str:
    """The numbers of replies that evade and that could not be judged: `3 evade, 2 unscored`; empty without any."""
    counts = ((rate.evades, "evade"), (rate.unscored, "unscored"))
    return ", ".join(f"{count} {word}" for count, word in counts if count)

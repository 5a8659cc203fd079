"""The suite of an evaluation: groups of prompts, each prompt with the goal by which intervals are clustered."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from seawall.artifacts.evaluation import Sample
from seawall.artifacts.groups import (
    ATTACK,
    BENIGN,
    BORDERLINE,
    PLAIN,
    WRAPPED,
    WRAPPED_BORDERLINE,
    attack_group,
    is_attack,
)
from seawall.data.attacks import LIVE_ATTACKS, further_turns
from seawall.data.prompts import Gold
from seawall.data.sets import Prompts
from seawall.data.splits import SplitName
from seawall.data.types import Messages
from seawall.errors import ConfigError

_ATTACKS = "attacks"
"""The kind of requests of every attack family, in `eval.groups`."""
LIVE_GROUPS = frozenset(map(attack_group, LIVE_ATTACKS))
"""The groups of built-in live attacks, whose samples of earlier versions do not say that they are live."""


@dataclass(frozen=True, slots=True)
class EvalPrompt:
    """One prompt of a suite. `id` is unique in the suite and stable across runs.

    `turns` are further user turns of a live attack, asked after the model's own replies; `live` says that there are
    some, or were before the conversation was held.
    """

    id: str
    group: str
    goal: str
    prompt: Messages
    turns: tuple[str, ...] = ()
    live: bool = False


@dataclass(frozen=True, slots=True)
class EvalSuite:
    """Groups of (goal, prompt), none of them empty, and the gold questions; `wrapped_in` names the attack families
    whose wrappings the harmless requests are in."""

    groups: Mapping[str, Sequence[tuple[str, Messages]]]
    gold: Sequence[Gold] = ()
    wrapped_in: tuple[str, ...] = ()

    def prompts(self) -> list[EvalPrompt]:
        """All prompts, group by group."""
        return [
            EvalPrompt(f"{group}/{number:04d}", group, goal, prompt, turns, live=bool(turns))
            for group, rows in self.groups.items()
            for number, (goal, prompt) in enumerate(rows)
            for turns in [further_turns(group.removeprefix(ATTACK), goal)]
        ]


def asked(row: Sample | EvalPrompt) -> Messages:
    """What a model was asked, without what it answered: of a live conversation the messages up to the first turn."""
    if not row.live and row.group not in LIVE_GROUPS:
        return row.prompt
    first = next(index for index, message in enumerate(row.prompt) if message.role == "user")
    return row.prompt[: first + 1]


def prompt_of(sample: Sample) -> EvalPrompt:
    """The prompt of a sample, to ask a model anew: of a live conversation the first turn, with the others to come.

    Raises:
        ConfigError: a live attack of a plugin that is not loaded.
    """
    turns = further_turns(sample.group.removeprefix(ATTACK), sample.goal)
    if sample.live and not turns:
        raise ConfigError(
            f"the turns of {sample.id} are not known",
            got="a live attack of a plugin that is not loaded",
            remedy="name the recipe file in place of the run's folder, with the plugin installed",
        )
    return EvalPrompt(sample.id, sample.group, sample.goal, asked(sample), turns, live=sample.live)


def build_suite(
    prompts: Prompts,
    part: SplitName = "test",
    *,
    unseen: bool = True,
    gold: bool = True,
    wrapping: bool = False,
    kinds: Collection[str] | None = None,
) -> EvalSuite:
    """The suite of one part of the prompts.

    Args:
        prompts: all prompts of a recipe.
        part: `test` for the report; `validation` to choose a round of the repair.
        unseen: include the attack families that the repair does not train on.
        gold: include the gold questions.
        wrapping: include borderline requests in the attacks' wrappings, from which the wrapping gap is measured.
        kinds: the kinds of requests of `eval.groups` to include; None includes all.
    """
    groups: dict[str, list[tuple[str, Messages]]] = {
        PLAIN: [(goal.text, goal.prompt) for goal in prompts.goals.part(part)]
    }
    for pair in prompts.pairs(part, unseen=unseen):
        groups.setdefault(attack_group(pair.attack_name), []).append((pair.goal, pair.attack))
    groups[BORDERLINE] = [(item.text, item.prompt) for item in prompts.borderline.part(part)]
    groups[BENIGN] = [(item.text, item.prompt) for item in prompts.benign.part(part)]
    groups[WRAPPED] = prompts.wrapped(part)
    if wrapping:
        groups[WRAPPED_BORDERLINE] = prompts.wrapped_borderline(part)
    filled = {name: rows for name, rows in groups.items() if rows and _is_included(name, kinds)}
    return EvalSuite(filled, prompts.gold if gold else (), prompts.attacks_seen)


def _is_included(group: str, kinds: Collection[str] | None) -> bool:
    """Whether a group's prompts are of the kinds; harmless requests in a wrapping need their own kind and attacks."""
    if kinds is None:
        return True
    harmless = {WRAPPED: BENIGN, WRAPPED_BORDERLINE: BORDERLINE}.get(group)
    if harmless is not None:
        return harmless in kinds and _ATTACKS in kinds
    return (_ATTACKS if is_attack(group) else group) in kinds

"""What steering works with: any causal language model, dense ones too, and prompts part by part."""

from __future__ import annotations

from dataclasses import dataclass

from seawall.artifacts.groups import ATTACK, BENIGN, BORDERLINE, PLAIN, WRAPPED
from seawall.config.data import DataConfig
from seawall.config.recipe import Recipe
from seawall.config.steer import SteerConfig
from seawall.data.prompts import Benign
from seawall.data.splits import SplitName, hash_fraction, take
from seawall.data.types import Message, Messages, user
from seawall.errors import DataError
from seawall.evaluation.suite import EvalPrompt, build_suite
from seawall.shell.context import Context

_GROUPS = (PLAIN, BORDERLINE, BENIGN)


@dataclass(frozen=True, eq=False)
class SteerContext(Context):
    """The shell's context, with prompts capped by the section `steer`."""

    @property
    def config(self) -> SteerConfig:
        """The recipe's section."""
        return self.recipe.steer

    def harmful(self, part: SplitName) -> list[Messages]:
        """Plain harmful requests of a part."""
        return [user(goal.text) for goal in self.prompts.goals.part(part)]

    def harmless(self, part: SplitName) -> list[Messages]:
        """Harmless instructions of a part."""
        most = {"train": self.config.train_prompts, "validation": self.config.validation_prompts, "test": None}[part]
        kept: tuple[Benign, ...] = take(self.prompts.benign.part(part), most)
        return [user(item.text) for item in kept]

    def attacks(self, part: SplitName) -> list[Messages]:
        """Attacks of the seen families on a part's goals, at most as many as there are prompts of a side."""
        pairs = self.prompts.pairs(part)
        chosen = sorted(pairs, key=lambda pair: hash_fraction(f"{pair.attack_name} {pair.goal}", "take"))
        return [pair.attack for pair in chosen[: self.config.validation_prompts]]

    def held_out(self) -> list[EvalPrompt]:
        """What is asked in every condition, from the test part alone.

        Where refusal is suppressed: plain requests, harmless ones and those that sound unsafe. Where it is induced:
        also every attack family and harmless requests put as the attacks are, on a number of goals.

        Raises:
            DataError: there are no plain requests in that part, or no harmless ones.
        """
        asked = build_suite(self.prompts, "test", gold=False).prompts()
        for group, what in ((PLAIN, "plain harmful"), (BENIGN, "harmless")):
            if not any(one.group == group for one in asked):
                raise DataError(
                    f"there are no held-out {what} prompts, so nothing could be reported",
                    got=f"an empty test part of data.{'harmful' if group == PLAIN else 'benign'}",
                    expected="test prompts on both sides",
                    remedy="use more prompts, or name the part of each with `split`",
                )
        kept = [one for one in asked if one.group in _GROUPS]
        if self.config.mode == "suppress":
            return kept
        most = self.config.harden.goals
        wrapped = [one for one in asked if one.group.startswith(ATTACK) or one.group == WRAPPED]
        names = {group: _some({one.goal for one in wrapped if one.group == group}, most) for group in _groups(wrapped)}
        return [*(one for one in wrapped if one.goal in names[one.group]), *kept]

    def under_system(self, asked: list[EvalPrompt], text: str) -> list[EvalPrompt]:
        """The same prompts under a system prompt."""
        return [EvalPrompt(one.id, one.group, one.goal, (Message("system", text), *one.prompt)) for one in asked]


def steer_data(recipe: Recipe) -> DataConfig:
    """The recipe's section `data` with the caps of the section `steer`."""
    config = recipe.steer
    caps = {
        "train_goals": config.train_prompts,
        "validation_goals": config.validation_prompts,
        "validation_benign": config.validation_prompts,
        "test_goals": config.test_prompts,
        "test_benign": config.test_prompts,
        "test_borderline": config.test_prompts,
    }
    return recipe.data.model_copy(update=caps)


def _groups(asked: list[EvalPrompt]) -> list[str]:
    return list(dict.fromkeys(one.group for one in asked))


def _some(goals: set[str], most: int | None) -> set[str]:
    return set(sorted(goals, key=lambda goal: hash_fraction(goal, "take"))[:most])

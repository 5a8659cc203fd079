"""What steering works with: any causal language model, MoE or dense, and prompts by split."""

from __future__ import annotations

from dataclasses import dataclass, replace

from seawall.artifacts.groups import ATTACK, BENIGN, BORDERLINE, PLAIN, WRAPPED
from seawall.config.data import DataConfig
from seawall.config.recipe import Recipe
from seawall.config.steer import SteerConfig
from seawall.data.prompts import Benign
from seawall.data.splits import SplitName, hash_fraction, take
from seawall.data.templating import prompt_text
from seawall.data.types import Message, Messages, user
from seawall.errors import DataError
from seawall.evaluation.suite import EvalPrompt, build_suite
from seawall.shell.context import Context

SEARCH = "search"
"""The folder of the search's intermediate results, in the scratch folder of the stage `steer`."""
_GROUPS = (PLAIN, BORDERLINE, BENIGN)


@dataclass(frozen=True, eq=False)
class SteerContext(Context):
    """The shell's context, with prompts capped by the section `steer`."""

    @property
    def config(self) -> SteerConfig:
        """The recipe's section `steer`."""
        return self.recipe.steer

    def harmful(self, part: SplitName) -> list[Messages]:
        """Plain harmful requests of a split."""
        return [goal.prompt for goal in self.prompts.goals.part(part)]

    def harmless(self, part: SplitName) -> list[Messages]:
        """Harmless instructions of a split."""
        limit = {"train": self.config.train_prompts, "validation": self.config.validation_prompts, "test": None}[part]
        items: tuple[Benign, ...] = take(self.prompts.benign.part(part), limit)
        return [item.prompt for item in items]

    def attacks(self, part: SplitName) -> list[Messages]:
        """Attacks of the seen families on a split's goals, at most `steer.validation_prompts`."""
        pairs = self.prompts.pairs(part)
        chosen = sorted(pairs, key=lambda pair: hash_fraction(f"{pair.attack_name} {pair.goal}", "take"))
        return [pair.attack for pair in chosen[: self.config.validation_prompts]]

    def held_out(self) -> list[EvalPrompt]:
        """The prompts of every condition, from the test split alone.

        Mode `suppress`: plain harmful, borderline and benign prompts. Mode `induce`: also every attack family and
        harmless prompts in the attacks' wrappings, on `steer.harden.goals` goals.

        Raises:
            DataError: the test split holds no plain harmful or no benign prompt.
        """
        suite_prompts = build_suite(self.prompts, "test", gold=False).prompts()
        for group, what in ((PLAIN, "plain harmful"), (BENIGN, "harmless")):
            if not any(prompt.group == group for prompt in suite_prompts):
                raise DataError(
                    f"there are no held-out {what} prompts to report on",
                    got=f"an empty test split of data.{'harmful' if group == PLAIN else 'benign'}",
                    expected="harmful and benign test prompts",
                    remedy="use more prompts, or assign each to a split with `split`",
                )
        plain = [prompt for prompt in suite_prompts if prompt.group in _GROUPS]
        if self.config.mode == "suppress":
            return plain
        limit = self.config.harden.goals
        wrapped = [prompt for prompt in suite_prompts if prompt.group.startswith(ATTACK) or prompt.group == WRAPPED]
        names = {
            group: _some({prompt.goal for prompt in wrapped if prompt.group == group}, limit)
            for group in _groups(wrapped)
        }
        return [*(prompt for prompt in wrapped if prompt.goal in names[prompt.group]), *plain]

    def takes_system(self, text: str) -> bool:
        """Whether the chat template writes a system prompt; where it does not, the user is told."""
        try:
            prompt_text(self.opened.tokenizer, (Message("system", text), *user("Please name a colour.")))
        except DataError as error:
            self.reporter.say(f"the safety prompt cannot be measured on this model: {error}")
            return False
        return True

    def under_system(self, prompts: list[EvalPrompt], text: str) -> list[EvalPrompt]:
        """The same prompts under a system prompt."""
        return [replace(prompt, prompt=(Message("system", text), *prompt.prompt)) for prompt in prompts]


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


def _groups(prompts: list[EvalPrompt]) -> list[str]:
    return list(dict.fromkeys(prompt.group for prompt in prompts))


def _some(goals: set[str], limit: int | None) -> set[str]:
    return set(sorted(goals, key=lambda goal: hash_fraction(goal, "take"))[:limit])

"""What a landscape is made from: the model, the directions that its weights move along, and held-out prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from seawall.artifacts.groups import BENIGN, BORDERLINE, PLAIN
from seawall.config.data import DataConfig
from seawall.config.landscape import LandscapeConfig
from seawall.config.model import LAB, LAB_ORIGINAL, ModelConfig
from seawall.config.recipe import Recipe
from seawall.errors import ConfigError, DataError
from seawall.evaluation.suite import EvalPrompt, build_suite
from seawall.methods.landscape.directions import (
    Direction,
    adapter_direction,
    aligned_direction,
    random_direction,
    tuned_direction,
)
from seawall.models.lora.merge import check_adapter
from seawall.shell.context import Context
from seawall.shell.model import open_checkpoint, require_loadable


@dataclass(frozen=True, eq=False)
class LandscapeContext(Context):
    """The shell's context, with what is asked and the directions that weights move along."""

    @property
    def config(self) -> LandscapeConfig:
        """The recipe's section."""
        return self.recipe.landscape

    @cached_property
    def asked(self) -> list[EvalPrompt]:
        """What is asked at every point, from the test part alone.

        Raises:
            DataError: there are no plain harmful requests in it.
        """
        asked = build_suite(self.prompts, "test", gold=False).prompts()
        groups = (PLAIN, BORDERLINE, BENIGN) if self.config.harmless_prompts != 0 else (PLAIN,)
        if not any(one.group == PLAIN for one in asked):
            raise DataError(
                "there are no held-out plain harmful prompts, so there is no landscape",
                got="an empty test part of data.harmful",
                remedy="use more prompts, or name the part of each with `split`",
            )
        return [one for one in asked if one.group in groups]

    @cached_property
    def directions(self) -> tuple[Direction, ...]:
        """The aligned one, that of the fine-tuning where there is one, and random ones as long as the aligned one.

        Raises:
            SeawallError: no base is named, or a checkpoint or adapter does not fit the model.
        """
        base = base_of(self.recipe)
        self.reporter.stage("Directions, from the checkpoints' files")
        found = tuple(self._directions(base))
        for one in found:
            self.reporter.say(f"{one.name}: {one.tensors} tensors, norm {one.norm:.4g}")
        return found

    def _directions(self, base: ModelConfig) -> Iterator[Direction]:
        aligned = self.checkpoint.outline
        along = aligned_direction(aligned, open_checkpoint(base).outline)
        yield along
        if self.config.tuned is not None:
            yield tuned_direction(aligned, open_checkpoint(self.config.tuned).outline)
        if self.config.adapter is not None:
            yield adapter_direction(aligned, Path(self.config.adapter))
        for at in range(self.config.random_directions):
            yield random_direction(along, self.config.seed + at, name=f"random-{at + 1}")


def landscape_data(recipe: Recipe) -> DataConfig:
    """The recipe's section `data` with the caps of the section `landscape`."""
    config = recipe.landscape
    most = config.harmless_prompts or None
    caps = {"test_goals": config.test_prompts, "test_benign": most, "test_borderline": most}
    return recipe.data.model_copy(update=caps)


def check_landscape(recipe: Recipe) -> None:
    """Refuse what can be known to be wrong before a run folder is made.

    Raises:
        SeawallError: no base, an endpoint, no adapter in its folder.
    """
    base_of(recipe)
    require_loadable(recipe.eval.engine, "the weights of a model behind an endpoint cannot be moved")
    if recipe.landscape.adapter is not None:
        check_adapter(Path(recipe.landscape.adapter))


def base_of(recipe: Recipe) -> ModelConfig:
    """The model that the recipe's was aligned from; the embedded one knows its own.

    Raises:
        ConfigError: none is named.
    """
    if recipe.landscape.base is not None:
        return recipe.landscape.base
    if recipe.model.id == LAB:
        return ModelConfig(id=LAB_ORIGINAL)
    raise ConfigError(
        f"nothing says which model {recipe.model.id} was aligned from",
        got="landscape.base=null",
        expected="a Hub id or a folder",
        remedy="set landscape.base.id",
    )

"""What a landscape is made from: the model, the directions that its weights move along, and held-out prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.artifacts.groups import BENIGN, BORDERLINE, PLAIN
from seawall.config.landscape import LandscapeConfig
from seawall.config.model import LAB, LAB_ORIGINAL, ModelConfig
from seawall.config.recipe import Recipe
from seawall.data.sets import Prompts, load_prompts
from seawall.data.types import Judge
from seawall.errors import ConfigError, DataError
from seawall.evaluation.judges import make_judge
from seawall.evaluation.suite import Asked, build_suite
from seawall.methods.landscape.directions import (
    Direction,
    adapter_direction,
    aligned_direction,
    random_direction,
    tuned_direction,
)
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.files.hub import locate
from seawall.models.files.load import load_model
from seawall.models.files.stream import CheckpointOutline, outline
from seawall.models.lora.merge import check_adapter
from seawall.runs.folder import RunFolder, update_manifest
from seawall.runs.progress import Reporter
from seawall.shell.model import located, require_loadable


@dataclass(frozen=True, eq=False)
class LandscapeModel:
    """A loaded model."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str


@dataclass(frozen=True, eq=False)
class LandscapeContext:
    """A recipe, its run folder, and where to report. The rest is opened at first use, and once."""

    recipe: Recipe
    run: RunFolder
    reporter: Reporter

    @property
    def config(self) -> LandscapeConfig:
        """The recipe's section."""
        return self.recipe.landscape

    @cached_property
    def prompts(self) -> Prompts:
        """The recipe's prompts, with the caps of the section `landscape` in place of those of `data`."""
        most = self.config.harmless_prompts or None
        caps = {"test_goals": self.config.test_prompts, "test_benign": most, "test_borderline": most}
        found = load_prompts(self.recipe.data.model_copy(update=caps))
        update_manifest(self.run, {"data": {"landscape_prompts": found.fingerprint()}})
        return found

    @cached_property
    def asked(self) -> list[Asked]:
        """What is asked at every point, from the test part alone.

        Raises:
            DataError: there are no plain harmful requests in it.
        """
        asked = build_suite(self.prompts, "test", gold=False).asked()
        groups = (PLAIN, BORDERLINE, BENIGN) if self.config.harmless_prompts != 0 else (PLAIN,)
        if not any(one.group == PLAIN for one in asked):
            raise DataError(
                "there are no held-out plain harmful prompts, so there is no landscape",
                got="an empty test part of data.harmful",
                remedy="use more prompts, or name the part of each with `split`",
            )
        return [one for one in asked if one.group in groups]

    @cached_property
    def aligned(self) -> CheckpointOutline:
        """The model's own checkpoint."""
        return outline(locate(located(self.recipe.model)))

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

    @cached_property
    def opened(self) -> LandscapeModel:
        """The model, loaded; dense ones too."""
        self.reporter.stage(f"Loading {self.recipe.model.id}")
        model, tokenizer = load_model(located(self.recipe.model))
        found = LandscapeModel(model, tokenizer, model_fingerprint(model))
        named = {"id": self.recipe.model.id, "revision": self.recipe.model.revision, "weights": found.fingerprint}
        update_manifest(self.run, {"model": named, "seed": self.recipe.seed})
        return found

    @cached_property
    def judge(self) -> Judge:
        """The recipe's judge; what an endpoint tells it is kept in the run folder."""
        return make_judge(self.recipe.eval.judge, self.run.judge)

    def _directions(self, base: ModelConfig) -> Iterator[Direction]:
        along = aligned_direction(self.aligned, outline(locate(located(base))))
        yield along
        if self.config.tuned is not None:
            yield tuned_direction(self.aligned, outline(locate(located(self.config.tuned))))
        if self.config.adapter is not None:
            yield adapter_direction(self.aligned, Path(self.config.adapter))
        for at in range(self.config.random_directions):
            yield random_direction(along, self.config.seed + at, name=f"random-{at + 1}")


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

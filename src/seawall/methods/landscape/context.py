"""What a landscape works with: the model, the directions that its weights move along, and held-out prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from transformers import PreTrainedModel

from seawall.artifacts.groups import BENIGN, BORDERLINE, PLAIN
from seawall.config.data import DataConfig
from seawall.config.landscape import LandscapeConfig
from seawall.config.model import LAB, LAB_ORIGINAL, ModelConfig
from seawall.config.recipe import Recipe
from seawall.errors import ArtifactError, ConfigError, DataError
from seawall.evaluation.suite import EvalPrompt, build_suite
from seawall.methods.landscape.directions import (
    Direction,
    adapter_direction,
    aligned_direction,
    random_direction,
    tuned_direction,
)
from seawall.methods.landscape.moved import MOVED, MovedWeights
from seawall.models.everywhere import everywhere
from seawall.models.files.stream import CheckpointOutline
from seawall.models.lora.merge import check_adapter
from seawall.shell.context import Context
from seawall.shell.engines import require_loadable
from seawall.shell.model import open_checkpoint


@dataclass(frozen=True, eq=False)
class LandscapeContext(Context):
    """The shell's context, with directions and held-out prompts."""

    @property
    def config(self) -> LandscapeConfig:
        """The recipe's section `landscape`."""
        return self.recipe.landscape

    @cached_property
    def held_out(self) -> list[EvalPrompt]:
        """The prompts asked at every point, from the test split alone.

        Raises:
            DataError: the test split holds no plain harmful request.
        """
        prompts = build_suite(self.prompts, "test", gold=False).prompts()
        groups = (PLAIN, BORDERLINE, BENIGN) if self.config.harmless_prompts != 0 else (PLAIN,)
        if not any(prompt.group == PLAIN for prompt in prompts):
            raise DataError(
                "a landscape needs held-out plain harmful prompts",
                got="an empty test split of data.harmful",
                remedy="use more prompts, or assign each to a split with `split`",
            )
        return [prompt for prompt in prompts if prompt.group in groups]

    @cached_property
    def directions(self) -> tuple[Direction, ...]:
        """Alignment, the fine-tuning where the recipe names one, and random directions of the first one's norms.

        Raises:
            SeawallError: no base is named, or a checkpoint or adapter is of another model.
        """
        base_of(self.recipe)
        self.reporter.stage("Directions, from the checkpoints' files")
        directions = tuple(_directions(self.recipe, self.checkpoint.outline))
        for direction in directions:
            self.reporter.say(f"{direction.name}: {direction.tensors} tensors, norm {direction.norm:.4g}")
        return directions

    @contextmanager
    def movable(self) -> Iterator[MovedWeights]:
        """Inside, the weights of the model can move, and with them those of its copies in a launch (`moved_by`).

        Raises:
            ArtifactError: as `MovedWeights`; in a launch also where another process has other files.
        """
        change = partial(_movable, self)
        elsewhere = partial(_movable_copy, self.recipe, _sources(self.directions))
        with everywhere(self.opened.model, change, held=MOVED, elsewhere=elsewhere) as moved:
            yield moved


def _directions(recipe: Recipe, aligned: CheckpointOutline) -> Iterator[Direction]:
    config = recipe.landscape
    alignment = aligned_direction(aligned, open_checkpoint(base_of(recipe)).outline)
    yield alignment
    if config.tuned is not None:
        yield tuned_direction(aligned, open_checkpoint(config.tuned).outline)
    if config.adapter is not None:
        yield adapter_direction(aligned, Path(config.adapter))
    for index in range(config.random_directions):
        yield random_direction(alignment, config.seed + index, name=f"random-{index + 1}")


def _sources(directions: Iterable[Direction]) -> dict[str, str]:
    return {direction.name: direction.source for direction in directions}


@contextmanager
def _movable(context: LandscapeContext, model: PreTrainedModel) -> Iterator[MovedWeights]:
    yield _moved_weights(context.recipe, model, context.checkpoint.outline, context.directions)


@contextmanager
def _movable_copy(recipe: Recipe, sources: Mapping[str, str], model: PreTrainedModel) -> Iterator[MovedWeights]:
    """`_movable` in another process of a launch, which reads the directions from its own files."""
    aligned = open_checkpoint(recipe.model).outline
    directions = tuple(_directions(recipe, aligned))
    for name, source in _sources(directions).items():
        if source != sources[name]:
            raise ArtifactError(
                f"the direction {name} is made of other weights than in the first process",
                got=f"{source[:23]}...",
                expected=f"{sources[name][:23]}...",
                remedy="give all nodes the same files of landscape.base, landscape.tuned and landscape.adapter",
            )
    yield _moved_weights(recipe, model, aligned, directions)


def _moved_weights(
    recipe: Recipe, model: PreTrainedModel, aligned: CheckpointOutline, directions: Sequence[Direction]
) -> MovedWeights:
    """The weights of a loaded model, in float32 unless the recipe names a type.

    In 16 bits most of a small move would be rounded away; `MovedWeights.realised` says how much.
    """
    return MovedWeights(model.float() if recipe.model.dtype == "auto" else model, aligned, directions)


def landscape_data(recipe: Recipe) -> DataConfig:
    """The recipe's section `data` with the caps of the section `landscape`."""
    config = recipe.landscape
    limit = config.harmless_prompts or None
    caps = {"test_goals": config.test_prompts, "test_benign": limit, "test_borderline": limit}
    return recipe.data.model_copy(update=caps)


def check_landscape(recipe: Recipe) -> None:
    """Refuse a recipe that cannot work, before a run folder is made.

    Raises:
        SeawallError: no base, an endpoint, or no adapter in the folder named.
    """
    base_of(recipe)
    require_loadable(recipe, "the weights of a model behind an endpoint cannot be moved")
    if recipe.landscape.adapter is not None:
        check_adapter(Path(recipe.landscape.adapter))


def base_of(recipe: Recipe) -> ModelConfig:
    """The base that the recipe's model was aligned from; the embedded model has a base of its own.

    Raises:
        ConfigError: the recipe names no base.
    """
    if recipe.landscape.base is not None:
        return recipe.landscape.base
    if recipe.model.id == LAB:
        return ModelConfig(id=LAB_ORIGINAL)
    raise ConfigError(
        f"a landscape needs the base that {recipe.model.id} was aligned from",
        got="landscape.base=null",
        expected="a Hub id or a folder",
        remedy="set landscape.base.id",
    )

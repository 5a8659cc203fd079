"""What fine-tuning works with: recipe, run folder, data, processes, and the model's and its base's checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.artifacts.anchor import Anchor
from seawall.config.anchor import AnchorConfig
from seawall.config.model import LAB, LAB_ORIGINAL, ModelConfig
from seawall.config.recipe import Recipe
from seawall.config.tune import ANCHORED, TuneConfig
from seawall.distributed.process import Processes
from seawall.errors import ConfigError
from seawall.methods.tune.alignment import AlignmentDifference
from seawall.methods.tune.anchor import anchor_between
from seawall.methods.tune.data import TuneData
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.lora.merge import load_merged
from seawall.shell.context import Context
from seawall.shell.engines import require_loadable
from seawall.shell.model import open_checkpoint


@dataclass(frozen=True, eq=False)
class TuneContext(Context):
    """The shell's context, with the data of the run and the processes that train together."""

    data: TuneData
    processes: Processes

    @property
    def config(self) -> TuneConfig:
        """The recipe's section `tune`."""
        return self.recipe.tune

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the loaded weights."""
        self.reporter.stage(f"Loading {self.recipe.model.id}")
        fingerprint = model_fingerprint(self.load_model()[0])
        if self.processes.first:
            self.note_model(fingerprint)
        return fingerprint

    @property
    def base(self) -> ModelConfig | None:
        """The model that the recipe's was aligned from; the embedded model has a base of its own."""
        if self.config.base is None and self.recipe.model.id == LAB:
            return self.recipe.model.model_copy(update={"id": LAB_ORIGINAL})
        return self.config.base

    def load_model(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A new copy of the model: training and merging an adapter change it in place."""
        return self.checkpoint.load()

    def load_merged(self, adapter: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model with an adapter merged; in float32 where the model's own type would round the update away."""
        return load_merged(self.checkpoint, adapter, self.reporter.say)

    def anchor_config(self) -> AnchorConfig:
        """Settings of an anchor over the matrices that LoRA adapts."""
        assert self.base is not None
        lora, size = self.config.lora, self.config.anchor
        return AnchorConfig(
            aligned=self.recipe.model,
            base=self.base,
            targets=(*lora.target_modules, *lora.target_parameters),
            rank=size.rank,
            energy=size.energy,
        )

    def alignment(self) -> AlignmentDifference:
        """Both checkpoints, for all of V = W_aligned - W_base."""
        assert self.base is not None
        return AlignmentDifference(self.checkpoint.outline, open_checkpoint(self.base).outline)

    def make_anchor(self) -> Anchor:
        """Computes the anchor from both checkpoints."""
        assert self.base is not None
        return anchor_between(self.checkpoint, open_checkpoint(self.base), self.anchor_config())


def check_recipe(recipe: Recipe) -> None:
    """Refuse a recipe that cannot be run, before a run folder is made.

    Raises:
        ConfigError: an endpoint, or methods that need a base without `tune.base`.
    """
    require_loadable(recipe, "a model behind an endpoint cannot be fine-tuned")
    anchored = [method for method in recipe.tune.methods if method in ANCHORED]
    if anchored and recipe.tune.base is None and recipe.model.id != LAB:
        raise ConfigError(
            f"{', '.join(anchored)} need the model's base",
            got="no tune.base",
            expected="the checkpoint that the model was aligned from",
            remedy="set tune.base.id, or choose tune.methods=[sft, mixing]",
        )


def settings(config: TuneConfig, *names: str) -> dict[str, Any]:
    """The named settings of the section, as JSON."""
    return config.model_dump(mode="json", include=set(names))

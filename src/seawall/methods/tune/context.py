"""What fine-tuning works with: what was read, the model and its anchor, opened at first use and once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.artifacts.anchor import Anchor
from seawall.config.anchor import AnchorConfig
from seawall.config.model import LAB, LAB_ORIGINAL, ModelConfig
from seawall.config.recipe import Recipe
from seawall.config.tune import ANCHORED, TuneConfig
from seawall.distributed.process import Processes
from seawall.errors import ConfigError
from seawall.methods.tune.anchor import anchor_between
from seawall.methods.tune.rows import TuneData
from seawall.models.files.fingerprint import model_fingerprint
from seawall.shell.context import Context
from seawall.shell.model import open_checkpoint, require_loadable


@dataclass(frozen=True, eq=False)
class TuneContext(Context):
    """The shell's context, with the rows of the task and the processes that train together."""

    data: TuneData
    processes: Processes

    @property
    def config(self) -> TuneConfig:
        """The recipe's section."""
        return self.recipe.tune

    @cached_property
    def fingerprint(self) -> str:
        """Of the model's weights as they are loaded."""
        self.reporter.stage(f"Loading {self.recipe.model.id}")
        fingerprint = model_fingerprint(self.fresh()[0])
        if self.processes.first:
            self.note_model(fingerprint)
        return fingerprint

    @property
    def base(self) -> ModelConfig | None:
        """The base: the recipe's, or the embedded model's own."""
        if self.config.base is None and self.recipe.model.id == LAB:
            return self.recipe.model.model_copy(update={"id": LAB_ORIGINAL})
        return self.config.base

    def fresh(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model, loaded anew: training and merging an adapter change it."""
        return self.checkpoint.load()

    def anchor_config(self) -> AnchorConfig:
        """The anchor of the matrices that are adapted."""
        assert self.base is not None
        lora, size = self.config.lora, self.config.anchor
        return AnchorConfig(
            aligned=self.recipe.model,
            base=self.base,
            targets=(*lora.target_modules, *lora.target_parameters),
            rank=size.rank,
            energy=size.energy,
        )

    def make_anchor(self) -> Anchor:
        """Reads both checkpoints."""
        assert self.base is not None
        return anchor_between(self.checkpoint, open_checkpoint(self.base), self.anchor_config())


def check(recipe: Recipe) -> None:
    """Refuse what cannot be run, before a folder is made for it.

    Raises:
        ConfigError: an endpoint; methods that need a base, and none is named.
    """
    require_loadable(recipe.eval.engine, "a model behind an endpoint cannot be fine-tuned")
    wanting = [method for method in recipe.tune.methods if method in ANCHORED]
    if wanting and recipe.tune.base is None and recipe.model.id != LAB:
        raise ConfigError(
            f"{', '.join(wanting)} need the model's base",
            got="no tune.base",
            expected="the checkpoint that the model was aligned from",
            remedy="set tune.base.id, or choose tune.methods=[sft, mixing]",
        )


def settings(config: TuneConfig, *names: str) -> dict[str, Any]:
    """Some of the section's settings, as JSON."""
    return config.model_dump(mode="json", include=set(names))

"""What the extraction of a gene works with: recipe, folder, models and prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from seawall.artifacts.adapter import GenePoint
from seawall.config.gene import GeneConfig
from seawall.data.splits import SplitName, take
from seawall.data.types import Messages, user
from seawall.models.files.open import Checkpoint
from seawall.models.lora.attach import find_points
from seawall.shell.context import Context
from seawall.shell.model import open_checkpoint

REPLIES, GENE = "gene-replies", "gene"
"""The stages of `seawall gene extract`."""


@dataclass(frozen=True, eq=False)
class GeneContext(Context):
    """The shell's context; the recipe's model is the aligned one. No model is loaded to read its files."""

    @property
    def config(self) -> GeneConfig:
        """The recipe's section."""
        return self.recipe.gene

    @cached_property
    def points(self) -> dict[str, GenePoint]:
        """Where the gene will be."""
        return find_points(self.checkpoint.outline.model, self.config.targets)

    @cached_property
    def degraded(self) -> Checkpoint | None:
        """The degraded model that the recipe names."""
        return None if self.config.degraded is None else open_checkpoint(self.config.degraded)

    def asked(self, part: SplitName, *, harmful: bool, most: int) -> list[Messages]:
        """Plain requests of one kind and part."""
        items: Sequence[Any] = self.prompts.goals.part(part) if harmful else self.prompts.benign.part(part)
        return [user(item.text) for item in take(items, most)]

    def step(self, what: str) -> Callable[[int, int], None]:
        """A function that reports progress under a name."""
        return lambda done, total: self.reporter.step(what, done, total)

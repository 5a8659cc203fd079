"""What the extraction of a gene works with: recipe, folder, models and prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.artifacts.gene import (
    GenePoint,
)
from seawall.config.gene import GeneConfig
from seawall.config.recipe import Recipe
from seawall.data.sets import Prompts, load_prompts
from seawall.data.splits import SplitName, take
from seawall.data.types import Judge, Messages, user
from seawall.evaluation.judges import make_judge
from seawall.models.files.hub import locate
from seawall.models.files.load import load_model, open_tokenizer
from seawall.models.files.rewrite import checkpoint_fingerprint
from seawall.models.files.stream import CheckpointOutline, outline
from seawall.models.lora.attach import find_points
from seawall.runs.folder import RunFolder, update_manifest
from seawall.runs.progress import Reporter
from seawall.shell.model import located

REPLIES, GENE = "gene-replies", "gene"
"""The stages of `seawall gene extract`."""


@dataclass(frozen=True, eq=False)
class GeneContext:
    """A recipe, its run folder, and where to report. What is read without loading a model is read once."""

    recipe: Recipe
    run: RunFolder
    reporter: Reporter

    @property
    def config(self) -> GeneConfig:
        """The recipe's section."""
        return self.recipe.gene

    @cached_property
    def aligned(self) -> CheckpointOutline:
        """The aligned model's checkpoint."""
        return outline(locate(located(self.recipe.model)))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        config = located(self.recipe.model)
        return open_tokenizer(locate(config, weights=False), config)

    @cached_property
    def points(self) -> dict[str, GenePoint]:
        """Where the gene will be."""
        return find_points(self.aligned.model, self.config.targets)

    @cached_property
    def fingerprint(self) -> str:
        """Of the aligned weights, as stored."""
        self.reporter.stage(f"Reading {self.recipe.model.id}")
        return checkpoint_fingerprint(self.aligned)

    @cached_property
    def prompts(self) -> Prompts:
        """The recipe's prompts in their parts."""
        found = load_prompts(self.recipe.data)
        update_manifest(self.run, {"data": {"gene_prompts": found.fingerprint()}})
        return found

    @cached_property
    def judge(self) -> Judge:
        """The recipe's judge."""
        return make_judge(self.recipe.eval.judge, self.run.judge)

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The aligned model."""
        return load_model(located(self.recipe.model))

    def asked(self, part: SplitName, *, harmful: bool, most: int) -> list[Messages]:
        """Plain requests of one kind and part."""
        items: Sequence[Any] = self.prompts.goals.part(part) if harmful else self.prompts.benign.part(part)
        return [user(item.text) for item in take(items, most)]

    def step(self, what: str) -> Callable[[int, int], None]:
        """A function that reports progress under a name."""
        return lambda done, total: self.reporter.step(what, done, total)

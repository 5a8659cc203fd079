"""What the extraction of a gene works with: recipe, run folder, checkpoints and prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from seawall.artifacts.adapter import GenePoint
from seawall.config.gene import GeneConfig
from seawall.config.model import ModelConfig
from seawall.data.prompts import BORDERLINE_REQUEST, RequestKind
from seawall.data.splits import Split, SplitName, take
from seawall.data.types import Exchange, Messages
from seawall.distributed.process import current_launch
from seawall.methods.gene.replies import read_replies
from seawall.models.decoding import Loaded
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.files.open import Checkpoint
from seawall.models.lora.attach import find_points
from seawall.models.replicas import load_copies, register_copies
from seawall.shell.context import Context
from seawall.shell.model import load_recipe_model, open_checkpoint
from seawall.shell.planned import placed_model

REPLIES, GENE = "gene-replies", "gene"
"""The stages of `seawall gene extract`."""


@dataclass(frozen=True, eq=False)
class GeneContext(Context):
    """The shell's context; the recipe's model is the aligned one. Making a context loads no model."""

    @property
    def config(self) -> GeneConfig:
        """The recipe's section `gene`."""
        return self.recipe.gene

    @cached_property
    def points(self) -> dict[str, GenePoint]:
        """The weight matrices that the gene may change, by parameter name."""
        return find_points(self.checkpoint.outline.model, self.config.targets)

    @cached_property
    def degraded(self) -> Checkpoint | None:
        """The degraded model that the recipe names; None where the extraction makes one."""
        if self.config.degraded is None:
            return None
        recipe = self.recipe.model_copy(update={"model": self.config.degraded})
        return open_checkpoint(placed_model(recipe, self.verbs, self.prompts, say=self.reporter.say))

    def load_aligned(self) -> Loaded:
        """The aligned model, loaded anew, also in the other processes of a launch.

        Raises:
            SeawallError: as `Checkpoint.load`.
        """
        return _loaded(self.recipe.model, self.checkpoint)

    def load_degraded(self) -> Loaded:
        """The degraded model that the recipe names; likewise."""
        assert self.config.degraded is not None
        assert self.degraded is not None
        return _loaded(self.config.degraded, self.degraded)

    def requests(self, part: SplitName, kind: RequestKind, *, limit: int) -> list[Messages]:
        """At most `limit` plain requests of one split and kind."""
        kinds: dict[RequestKind, Split[Any]] = {
            "harmful": self.prompts.goals,
            "benign": self.prompts.benign,
            BORDERLINE_REQUEST: self.prompts.borderline,
        }
        return [item.prompt for item in take(kinds[kind].part(part), limit)]

    def exchanges(self, part: SplitName, *kinds: RequestKind) -> list[Exchange]:
        """The aligned model's replies of one split and these kinds, from the finished stage `gene-replies`."""
        replies = read_replies(self.run.stage(REPLIES) / "replies.jsonl")
        return [reply.exchange for reply in replies if reply.part == part and reply.kind in kinds]

    def progress(self, what: str) -> Callable[[int, int], None]:
        """A function that reports the progress of `what`."""
        return lambda count, total: self.reporter.step(what, count, total)


def _loaded(config: ModelConfig, checkpoint: Checkpoint) -> Loaded:
    load_copies(load_recipe_model, config)
    model, tokenizer = checkpoint.load()
    if current_launch().count > 1:
        register_copies(model, model_fingerprint(model))
    return model, tokenizer

"""What all stages of one run share. Prompts and model are opened at first use, and once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from seawall.config.recipe import Recipe
from seawall.data.sets import Prompts, load_prompts
from seawall.data.types import Judge
from seawall.evaluation.judges import make_judge
from seawall.runs.folder import RunFolder, update_manifest
from seawall.runs.progress import Reporter
from seawall.shell.model import OpenModel, open_model


@dataclass(frozen=True, eq=False)
class Context:
    """A recipe, its run folder, and where to report."""

    recipe: Recipe
    run: RunFolder
    reporter: Reporter

    @cached_property
    def prompts(self) -> Prompts:
        """All prompts of the recipe."""
        found = load_prompts(self.recipe.data)
        update_manifest(self.run, {"data": {"prompts": found.fingerprint()}})
        return found

    @cached_property
    def opened(self) -> OpenModel:
        """The model, loaded; the repair changes it in place."""
        self.reporter.stage(f"Loading {self.recipe.model.id}")
        found = open_model(self.recipe.model)
        self.reporter.say(found.moe.describe())
        model = {"id": self.recipe.model.id, "revision": self.recipe.model.revision, "weights": found.fingerprint}
        model |= {"license": found.licence} if found.licence is not None else {}
        update_manifest(self.run, {"model": model, "seed": self.recipe.seed})
        return found

    @cached_property
    def judge(self) -> Judge:
        """The recipe's judge; what an endpoint tells it is kept in the run folder."""
        return make_judge(self.recipe.eval.judge, self.run.judge)

"""What every function of the API takes and returns: a recipe with settings by section, progress, and a result.

Settings stand by section, as `repair={"rounds": 2}`; `model="ID"` is short for `model={"id": "ID"}`.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from seawall.config.load import change_recipe, load_recipe, recipe_text
from seawall.config.recipe import Recipe
from seawall.errors import ConfigError
from seawall.runs.progress import Quiet, Reporter, TerminalReporter

PathText = str | PathLike[str]
RecipeOrPath = Recipe | PathText | None
"""A recipe, its YAML file, or None for the embedded model's."""
Progress = bool | Reporter
"""True prints to standard error as the command line does; an object of one's own is told what happens."""


@dataclass(frozen=True)
class Result:
    """What a verb found.

    Attributes:
        path: the folder that holds it; None where nothing was written.
        summary: its numbers, as `--json` prints them.
        report: the HTML page, where there is one.
    """

    path: Path | None
    summary: Mapping[str, Any]
    report: Path | None = None

    def _repr_html_(self) -> str:
        """The report in a notebook, in a frame of its own; else the numbers."""
        if self.report is None or not self.report.is_file():
            return f"<pre>{html.escape(json.dumps(self.summary, indent=1))}</pre>"
        page = html.escape(self.report.read_text(encoding="utf-8"), quote=True)
        return f'<iframe sandbox="allow-scripts" style="width:100%;height:640px;border:0" srcdoc="{page}"></iframe>'


def changes_of(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Settings as `--set` has them: `{"repair": {"rounds": 2}}` -> `["repair.rounds=2"]`."""
    changes = []
    for key, value in settings.items():
        if key == "model" and not prefix and isinstance(value, str):
            changes.append(f"model.id={json.dumps(value)}")
        elif isinstance(value, Mapping) and value:
            changes += changes_of(value, f"{prefix}{key}.")
        else:
            changes.append(f"{prefix}{key}={json.dumps(value, default=str)}")
    return changes


def read_recipe(recipe: RecipeOrPath, settings: Mapping[str, Any]) -> tuple[Recipe, str]:
    """The recipe, and its text for the run folder; changes are kept as comments."""
    changes = changes_of(settings)
    if isinstance(recipe, Recipe):
        document = recipe.model_dump(mode="json")
        read = change_recipe(document, changes, where="the recipe", section=None)
        return read, yaml.safe_dump(read.model_dump(mode="json"), sort_keys=False)
    text = recipe_text(None if recipe is None else Path(recipe))
    comments = "".join(f"# --set {change}\n" for change in changes)
    return load_recipe(recipe if recipe is None else Path(recipe), changes), text.rstrip("\n") + "\n" + comments


def run_folder(recipe: Recipe, output: PathText | None) -> Path:
    """The run folder: the one named, the recipe's, or `runs/NAME`."""
    return Path(output or recipe.output or f"runs/{recipe.name}")


def run_of(recipe: RecipeOrPath, output: PathText | None) -> Path | None:
    """The run folder that stands for a recipe; None for a recipe."""
    if recipe is None or isinstance(recipe, Recipe) or not Path(recipe).is_dir():
        return None
    if output is not None:
        raise ConfigError(f"{recipe} is a run", got="an output folder", remedy="leave it out: a run has its own folder")
    return Path(recipe)


@contextmanager
def reporter_of(progress: Progress) -> Iterator[Reporter]:
    """The reporter that stands for `progress`."""
    if progress is True:
        with TerminalReporter() as reporter:
            yield reporter
    else:
        yield Quiet() if progress is False else progress

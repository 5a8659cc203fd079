"""Arguments and results of the API's functions: a recipe with settings by section, progress, and a result.

Settings are grouped by section, as in `repair={"rounds": 2}`; `model="ID"` is short for `model={"id": "ID"}`.
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
"""True prints progress to standard error, as the command line does; a `Reporter` receives it."""


@dataclass(frozen=True)
class Result:
    """The result of a verb.

    Attributes:
        path: its folder; None where nothing was written.
        summary: the JSON document that `--json` prints.
        report: the HTML page, if there is one.
    """

    path: Path | None
    summary: Mapping[str, Any]
    report: Path | None = None

    def _repr_html_(self) -> str:
        """In a notebook: the report in a frame, otherwise the summary."""
        if self.report is None or not self.report.is_file():
            return f"<pre>{html.escape(json.dumps(self.summary, indent=1))}</pre>"
        page = html.escape(self.report.read_text(encoding="utf-8"), quote=True)
        return f'<iframe sandbox="allow-scripts" style="width:100%;height:640px;border:0" srcdoc="{page}"></iframe>'


def changes_of(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Settings in the form of `--set`: `{"repair": {"rounds": 2}}` -> `["repair.rounds=2"]`."""
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
    """The recipe with the settings, and its text for the run folder, with the changes as comments."""
    changes = changes_of(settings)
    if isinstance(recipe, Recipe):
        document = recipe.model_dump(mode="json")
        changed = change_recipe(document, changes, where="the recipe", section=None)
        return changed, yaml.safe_dump(changed.model_dump(mode="json"), sort_keys=False)
    text = recipe_text(None if recipe is None else Path(recipe))
    comments = "".join(f"# --set {change}\n" for change in changes)
    return load_recipe(recipe if recipe is None else Path(recipe), changes), text.rstrip("\n") + "\n" + comments


def run_folder(recipe: Recipe, output: PathText | None) -> Path:
    """The run folder: the one named, the recipe's, or `runs/NAME`."""
    return Path(output or recipe.output or f"runs/{recipe.name}")


def run_of(recipe: RecipeOrPath, output: PathText | None) -> Path | None:
    """The run folder in place of a recipe; None for a recipe."""
    if recipe is None or isinstance(recipe, Recipe) or not Path(recipe).is_dir():
        return None
    if output is not None:
        raise ConfigError(f"{recipe} is a run", got="an output folder", remedy="leave out output: a run has its folder")
    return Path(recipe)


@contextmanager
def reporter_of(progress: Progress) -> Iterator[Reporter]:
    """The reporter of a `progress` argument."""
    if progress is True:
        with TerminalReporter() as reporter:
            yield reporter
    else:
        yield Quiet() if progress is False else progress

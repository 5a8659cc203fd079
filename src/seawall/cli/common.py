"""Options that several verbs share, and how results are printed."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from seawall.config.recipe import Recipe

LOG_WIDTH = 140
"""A job's log has no width of its own; numbers must not be cut there."""

RecipeArgument = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads this annotation
    typer.Argument(
        metavar="[RECIPE.yaml]", help="Recipe file; none runs the embedded model's recipe.", show_default=False
    ),
]
TargetArgument = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Argument(
        metavar="[RECIPE.yaml|RUN]",
        help="Recipe file, or a run's folder; none takes the embedded model's recipe.",
        show_default=False,
    ),
]
SetOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--set", metavar="A.B=C", help="Change one setting of the recipe; can be repeated."),
]
OutputOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--output", "-o", help="Run folder; default: the recipe's `output`, else runs/NAME."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and no progress.")]


def read_recipe(path: Path | None, changes: Sequence[str] | None) -> tuple[Recipe, str]:
    """The recipe and its text; changes are kept as comments, since they belong to what the user asked for."""
    from seawall.config.load import load_recipe, recipe_text

    text = recipe_text(path)
    asked = list(changes or ())
    recipe = load_recipe(path, asked)
    if asked:
        text = text.rstrip("\n") + "\n" + "".join(f"# --set {change}\n" for change in asked)
    return recipe, text


def run_folder(recipe: Recipe, output: Path | None) -> Path:
    """Where the run lies."""
    return output or Path(recipe.output or f"runs/{recipe.name}")


def open_target(
    target: Path | None, changes: Sequence[str] | None, output: Path | None
) -> tuple[Path, tuple[Recipe, str] | None]:
    """The run folder of a recipe or a run, and the recipe with its text; None in its place where it is a run.

    Raises:
        ConfigError: a wrong recipe; another folder for a run.
    """
    from seawall.errors import ConfigError

    if target is None or not target.is_dir():
        read = read_recipe(target, changes)
        return run_folder(read[0], output), read
    if output is not None:
        raise ConfigError(f"{target} is a run", got="--output", remedy="leave it out: a run has its own folder")
    return target, None


def results_console() -> Console:
    """What results are printed on: standard output, which has a width of its own in a terminal alone."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    return console


def print_json(document: Any) -> None:
    """One JSON object on standard output."""
    typer.echo(json.dumps(document, indent=1))


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Imports of libraries: progress bars and notices of theirs are kept off the terminal, warnings stay.

    Garbage is not collected meanwhile: with torch and transformers a million objects come that all stay, and to look
    through them again and again takes a second.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    collecting = gc.isenabled()
    gc.disable()
    try:
        from transformers.utils import logging

        logging.disable_progress_bar()
        yield
    finally:
        if collecting:
            gc.enable()

"""Options of several commands, and the output of results."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from seawall.launcher import is_launched, launched_processes

if TYPE_CHECKING:
    from seawall.config.recipe import Recipe
    from seawall.runs.console import PlainConsole
    from seawall.runs.progress import Reporter

LOG_WIDTH = 140
"""Width of tables outside a terminal, such as in a job's log, where numbers must not be cut."""

RecipeArgument = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads this annotation
    typer.Argument(
        metavar="[RECIPE.yaml]", help="Recipe file; default: the recipe of the embedded model.", show_default=False
    ),
]
TargetArgument = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Argument(
        metavar="[RECIPE.yaml|RUN]",
        help="Recipe file, or folder of a run; default: the recipe of the embedded model.",
        show_default=False,
    ),
]
SetOption = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--set", metavar="A.B=C", help="Set one key of the recipe; repeatable."),
]
OutputOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--output", "-o", help="Run folder; default: the recipe's `output`, else runs/NAME."),
]
AcrossTemplatesOption = Annotated[
    bool,
    typer.Option(
        "--across-templates",
        help="Compare evaluations of models that render prompts differently (template, tokenizer).",
    ),
]
LimitOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--limit",
        min=1,
        metavar="N",
        help="Maximum number of prompts of every group, for a first look; a run of its own (data.limit).",
        show_default=False,
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result and errors alone.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print what `seawall plan` prints for this command; run and write nothing.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object; no progress.")]


def read_recipe(path: Path | None, changes: Sequence[str] | None) -> tuple[Recipe, str]:
    """The recipe with `changes` applied, and its text with the changes appended as comments."""
    from seawall.config.load import load_recipe, recipe_text

    text = recipe_text(path)
    overrides = list(changes or ())
    recipe = load_recipe(path, overrides)
    if overrides:
        text = text.rstrip("\n") + "\n" + "".join(f"# --set {change}\n" for change in overrides)
    return recipe, text


def with_limit(sets: Sequence[str] | None, limit: int | None) -> list[str]:
    """The settings of --set, and that of --limit."""
    return [*(sets or ()), *(() if limit is None else (f"data.limit={limit}",))]


def reporting(*, quiet: bool) -> AbstractContextManager[Reporter]:
    """The reporter of a command: the terminal's, or none."""
    from seawall.runs.progress import Quiet, TerminalReporter

    return nullcontext(Quiet()) if quiet else TerminalReporter()


def print_limit(console: PlainConsole, limit: int | None) -> None:
    """Prints that the numbers are those of a limited sample."""
    from seawall.config.data import limited_note

    if limit is not None:
        console.print(limited_note(limit), soft_wrap=True)


def run_folder(recipe: Recipe, output: Path | None) -> Path:
    """The run folder: `output`, else the recipe's `output`, else runs/NAME."""
    return output or Path(recipe.output or f"runs/{recipe.name}")


def open_target(
    target: Path | None, changes: Sequence[str] | None, output: Path | None
) -> tuple[Path, tuple[Recipe, str] | None]:
    """The run folder of a recipe or run; with the recipe and its text, or None for a run.

    Raises:
        ConfigError: the recipe is invalid, or --output is given for a run.
    """
    from seawall.errors import ConfigError

    if target is None or not target.is_dir():
        recipe, text = read_recipe(target, changes)
        return run_folder(recipe, output), (recipe, text)
    if output is not None:
        raise ConfigError(f"{target} is a run", got="--output", remedy="leave out --output: a run has its own folder")
    return target, None


def results_console() -> PlainConsole:
    """The console for results: standard output, `LOG_WIDTH` wide outside a terminal."""
    from seawall.runs.console import PlainConsole

    console = PlainConsole()
    if not console.is_terminal:
        console.width = LOG_WIDTH
    return console


def print_json(document: Any) -> None:
    """Prints one JSON object on standard output."""
    typer.echo(json.dumps(document, indent=1))


@contextmanager
def shared_launch(recipe: Recipe) -> Iterator[None]:
    """Inside, the processes of a launcher share the work; without a launcher there is one process.

    Raises:
        typer.Exit: in every process but the first, at the end of the work, of which these computed their shares.
        ConfigError: `model.device` gives several processes one device.
    """
    if not is_launched():
        yield
        return
    from seawall.distributed.process import launch_is_current, launched
    from seawall.models.replicas import serve

    processes = launched(device=recipe.model.device)
    with launch_is_current(processes):
        if not processes.first:
            serve(processes)
            raise typer.Exit
        yield
    processes.order(None)


def require_one_process(command: str) -> None:
    """Refuses a launcher for a command that shares no work, before anything is loaded.

    Raises:
        ConfigError: a launcher has started several processes.
    """
    from seawall.errors import ConfigError

    if is_launched():
        raise ConfigError(
            f"{command} runs in one process",
            got=f"{launched_processes()} processes",
            expected="one",
            remedy="start it without torchrun or accelerate launch",
        )


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """For imports of libraries: hides their progress bars and log messages below errors; warnings stay.

    Garbage collection is off inside, because importing torch and transformers creates a million permanent objects, and
    scanning them repeatedly takes a second.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        from transformers.utils import logging

        logging.disable_progress_bar()
        yield
    finally:
        if was_enabled:
            gc.enable()

"""`seawall export inspect|tasks`: what a folder or a recipe holds, in the formats of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seawall.cli.common import JsonOption, RecipeArgument, SetOption, print_json, quiet_libraries, read_recipe
from seawall.visible import visible_line

app = typer.Typer(
    no_args_is_help=True,
    help="Write runs and recipes for other tools: Inspect logs, tasks of lm-eval and Inspect.",
)
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run, or of `seawall eval`.")]
NewFolder = Annotated[Path, typer.Option("--output", "-o", help="Folder for the files; must be new or empty.")]


@app.command("inspect")
def inspect(run: RunArgument, output: NewFolder, *, as_json: JsonOption = False) -> None:
    """Write every evaluation as a log of Inspect (`.eval`): `inspect view --log-dir OUTPUT` shows it.

    Each reply has the scores `complied` and `refused`, with the judge's reason;
    our rates with intervals are the metrics. Prompts and replies are in the
    log as they are in samples.jsonl. Needs `seawall[inspect]`.
    """
    with quiet_libraries():
        from seawall.formats.inspect_log import write_inspect_logs

    _print_paths(write_inspect_logs(run, output), as_json=as_json)


@app.command("tasks")
def tasks(
    output: NewFolder, recipe: RecipeArgument = None, *, sets: SetOption = None, as_json: JsonOption = False
) -> None:
    """Write the recipe's test prompts and judge as tasks of lm-evaluation-harness and of Inspect.

    `lm_eval --include_path OUTPUT --tasks seawall,seawall_harmful,seawall_harmless
    --apply_chat_template`; `inspect eval OUTPUT/inspect_task.py`. Both measure
    the harmful and the harmless side, their difference, and what is unscored.
    """
    resolved, _ = read_recipe(recipe, sets)
    with quiet_libraries():
        from dataclasses import asdict

        from seawall.formats.task_folder import write_tasks

    folder = write_tasks(resolved, output)
    if as_json:
        print_json(asdict(folder))
        return
    left_out = f"; {folder.live} of live attacks in Inspect's task alone" if folder.live else ""
    typer.echo(f"{folder.prompts} prompts{left_out}")
    typer.echo(visible_line(folder.path))


def _print_paths(paths: tuple[Path, ...], *, as_json: bool) -> None:
    if as_json:
        print_json({"files": [str(path) for path in paths]})
        return
    for path in paths:
        typer.echo(visible_line(str(path)))

"""`seawall export`: what a folder or a recipe holds, in the formats of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seawall.cli.common import (
    JsonOption,
    RecipeArgument,
    SetOption,
    print_json,
    quiet_libraries,
    read_recipe,
    results_console,
)
from seawall.errors import ConfigError
from seawall.visible import visible_line

app = typer.Typer(
    no_args_is_help=True,
    help="Write runs and recipes for other tools: Inspect logs, tasks, bills of materials, tracker files, Hub results.",
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


@app.command("bom")
def bom(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run with a repair.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The JSON file; must be new.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Write the bill of materials of a repaired model, in CycloneDX 1.6 (ML-BOM).

    The base model, the delta, data sets by digest, files with their hashes, and
    the evaluation before and after. Needs `seawall[bom]`.
    """
    with quiet_libraries():
        from seawall.formats.bom import write_bom

    _print_paths((write_bom(run, output),), as_json=as_json)


@app.command("tracker")
def tracker(
    run: RunArgument,
    output: NewFolder,
    *,
    name: Annotated[
        str, typer.Option("--tracker", help="`tensorboard`, `trackio` or `wandb` (offline).")
    ] = "tensorboard",
    as_json: JsonOption = False,
) -> None:
    """Write the repair's losses by update, and the rates before and after, for an experiment tracker.

    Sends nothing: `tensorboard --logdir OUTPUT` shows the files, `wandb sync`
    uploads an offline run, `TRACKIO_DIR=OUTPUT trackio show` opens trackio's.
    Needs `seawall[trackers]`, trackio or wandb.
    """
    with quiet_libraries():
        from seawall.formats.trackers import TRACKERS, TrackerName, write_tracker

    names: dict[str, TrackerName] = {key: key for key in TRACKERS}
    if name not in names:
        raise ConfigError("--tracker is wrong", got=name, expected=", ".join(names))
    _print_paths((write_tracker(run, output, names[name]),), as_json=as_json)


@app.command("eval-results")
def eval_results(
    run: RunArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the model's repository; gets .eval_results/seawall.yaml.")
    ],
    *,
    dataset: Annotated[
        str | None,
        typer.Option(help="Benchmark dataset on the Hub, OWNER/NAME; default: the Hub datasets of the prompts."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="With --dataset: its commit.")] = None,
    source: Annotated[str | None, typer.Option(metavar="URL", help="Address of the report.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the rates as the Hub reads them for model pages and leaderboards of benchmark datasets.

    Of a run the rates of the repaired model. Each rate is a task of the dataset;
    its interval, counts, judge and seed are in the notes. Sends nothing.
    """
    with quiet_libraries():
        from seawall.formats.hub_results import write_hub_results

    written = write_hub_results(run, output, dataset=dataset, revision=revision, source=source)
    if as_json:
        print_json({"files": [str(written.path)], "tasks": written.tasks, "left_out": written.left_out})
        return
    console = results_console()
    if written.left_out:
        console.print("left out, with prompts from no dataset of the Hub: " + ", ".join(written.left_out))
    _print_paths((written.path,), as_json=False)


def _print_paths(paths: tuple[Path, ...], *, as_json: bool) -> None:
    if as_json:
        print_json({"files": [str(path) for path in paths]})
        return
    for path in paths:
        typer.echo(visible_line(str(path)))

"""`seawall eval`: a run's evaluations, or a model, a delta, an adapter or an endpoint on its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from seawall.cli.common import (
    JsonOption,
    OutputOption,
    RecipeArgument,
    SetOption,
    print_json,
    quiet_libraries,
    read_recipe,
)
from seawall.cli.stages import run_until

if TYPE_CHECKING:
    from seawall.config.recipe import Recipe
    from seawall.jobs.evaluate import EvalTarget, Evaluation

_Folder = Optional[Path]  # noqa: UP045 - typer reads these annotations
_Name = Optional[str]  # noqa: UP045


def evaluate(
    recipe: RecipeArgument = None,
    *,
    model: Annotated[
        _Name, typer.Option("--model", "-m", help="`lab`, a folder, a Hub id; or a name at the endpoint.")
    ] = None,
    delta: Annotated[_Folder, typer.Option(help="A `delta` folder of a run, put on the model.")] = None,
    adapter: Annotated[
        _Folder, typer.Option(help="A folder with a LoRA adapter of PEFT, merged into the model.")
    ] = None,
    endpoint: Annotated[_Name, typer.Option(metavar="URL", help="An OpenAI-compatible endpoint, with its /v1.")] = None,
    sets: SetOption = None,
    output: OutputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate the recipe's model on test goals; and the repaired one, where the run folder holds a repair.

    With --model, --delta, --adapter or --endpoint, or a recipe whose engine is an endpoint: that model alone, on the
    recipe's prompts, into a run folder of its own (default: runs/NAME-eval).
    """
    wanted, text = read_recipe(recipe, [*_changes(recipe, model, endpoint), *(sets or ())])
    alone = any(option is not None for option in (model, delta, adapter, endpoint))
    if not alone and wanted.eval.engine.kind == "transformers":
        run_until("evaluate", recipe, sets, output, as_json=as_json)
        return
    quiet_libraries()
    from seawall.jobs.evaluate import EvalTarget

    folder = output or Path(f"runs/{wanted.name}-eval")
    found = _run(wanted, EvalTarget(delta, adapter), folder, text=text, as_json=as_json)
    if as_json:
        print_json(found.summary)
    else:
        _show(found)


def _changes(recipe: Path | None, model: str | None, endpoint: str | None) -> list[str]:
    """The settings that the options stand for; those of --set come after them.

    Raises:
        ConfigError: an endpoint without the model's name.
    """
    if endpoint is not None:
        if model is None:
            from seawall.errors import ConfigError

            raise ConfigError("--endpoint needs the name of the model there", remedy="give it as --model NAME")
        return [
            "eval.engine.kind=endpoint",
            f"eval.engine.base_url={json.dumps(endpoint)}",
            f"eval.engine.model={json.dumps(model)}",
        ]
    if model is None:
        return []
    from seawall.config.model import EMBEDDED

    # The embedded model's recipe says how its own small experts are best computed: no advice for another model.
    own = ["model.experts_implementation=null"] if recipe is None and model not in EMBEDDED else []
    return [f"model.id={json.dumps(model)}", *own]


def _run(recipe: Recipe, target: EvalTarget, folder: Path, *, text: str, as_json: bool) -> Evaluation:
    from seawall.jobs.evaluate import evaluate_target
    from seawall.runs.progress import Quiet, TerminalReporter

    if as_json:
        return evaluate_target(recipe, target, folder, text=text, reporter=Quiet())
    with TerminalReporter() as reporter:
        return evaluate_target(recipe, target, folder, text=text, reporter=reporter)


def _show(found: Evaluation) -> None:
    from rich.console import Console

    from seawall.evaluation.view import headline_table, length_table

    console = Console(highlight=False)
    console.print(headline_table((("rate", found.result),), {}))
    if found.result.lengths:
        console.print(length_table(found.result))
    console.print(str(found.run.path), soft_wrap=True, markup=False)

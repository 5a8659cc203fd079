"""`seawall eval`: evaluates a run's models, or a single model, delta, adapter or endpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from seawall.cli.common import (
    DryRunOption,
    JsonOption,
    LimitOption,
    OutputOption,
    QuietOption,
    RecipeArgument,
    SetOption,
    print_json,
    print_limit,
    quiet_libraries,
    read_recipe,
    reporting,
    results_console,
    shared_launch,
    with_limit,
)
from seawall.cli.plan import show_plan
from seawall.cli.stages import require_scored, run_until

if TYPE_CHECKING:
    from seawall.config.recipe import Recipe
    from seawall.jobs.evaluate import EvalTarget, Evaluation

_Folder = Optional[Path]  # noqa: UP045 - typer reads these annotations
_Name = Optional[str]  # noqa: UP045


def evaluate(  # noqa: PLR0913 - each option of the command is a parameter
    recipe: RecipeArgument = None,
    *,
    model: Annotated[
        _Name, typer.Option("--model", "-m", help="`lab`, a folder or a Hub id; or the model's name at the endpoint.")
    ] = None,
    delta: Annotated[_Folder, typer.Option(help="The `delta` folder of a run, applied to the model.")] = None,
    adapter: Annotated[_Folder, typer.Option(help="Folder of a LoRA adapter of PEFT, merged into the model.")] = None,
    endpoint: Annotated[
        _Name, typer.Option(metavar="URL", help="Address of an OpenAI-compatible endpoint, with /v1.")
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Ask harmful, borderline and benign requests as they are, without attacks.")
    ] = False,
    sets: SetOption = None,
    limit: LimitOption = None,
    output: OutputOption = None,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Evaluate the recipe's model on its test prompts, and the repaired model if the run folder has one.

    With --model, --delta, --adapter, --endpoint or --plain, or a recipe with an
    endpoint as engine or with eval.groups: evaluate that model alone, on the
    recipe's prompts, in a run folder of its own (default: runs/NAME-eval).
    """
    changes = with_limit(sets, limit)
    resolved, text = read_recipe(recipe, [*_changes(recipe, model, endpoint), *_plain(plain), *changes])
    if dry_run:
        show_plan(resolved, "eval", as_json=as_json)
        return
    alone = any(option is not None for option in (model, delta, adapter, endpoint))
    alone = alone or resolved.eval.groups is not None
    if not alone and resolved.eval.engine.kind != "endpoint":
        run_until("evaluate", recipe, changes, output, quiet=quiet, as_json=as_json)
        return
    with quiet_libraries():
        from seawall.jobs.evaluate import EvalTarget

    folder = output or Path(f"runs/{resolved.name}-eval")
    evaluation = _run(resolved, EvalTarget(delta, adapter), folder, text=text, quiet=quiet or as_json)
    if as_json:
        print_json(evaluation.summary)
    else:
        _show(evaluation, resolved.data.limit)
    require_scored((("rate", evaluation.result),))


def _changes(recipe: Path | None, model: str | None, endpoint: str | None) -> list[str]:
    """The recipe settings of the options; settings of --set override them.

    Raises:
        ConfigError: --endpoint without --model.
    """
    if endpoint is not None:
        if model is None:
            from seawall.errors import ConfigError

            raise ConfigError("--endpoint needs the model's name at the endpoint", remedy="add --model NAME")
        return [
            "eval.engine.kind=endpoint",
            f"eval.engine.base_url={json.dumps(endpoint)}",
            f"eval.engine.model={json.dumps(model)}",
        ]
    if model is None:
        return []
    from seawall.config.model import EMBEDDED

    # The recipe of the embedded model sets an implementation for its small experts, unsuitable for other models.
    own = ["model.experts_implementation=null"] if recipe is None and model not in EMBEDDED else []
    return [f"model.id={json.dumps(model)}", *own]


def _plain(plain: bool) -> list[str]:
    """The recipe settings of --plain."""
    from seawall.config.eval import PLAIN_GROUPS

    return [f"eval.groups={json.dumps(PLAIN_GROUPS)}"] if plain else []


def _run(recipe: Recipe, target: EvalTarget, folder: Path, *, text: str, quiet: bool) -> Evaluation:
    from seawall.jobs.evaluate import evaluate_target

    with shared_launch(recipe), reporting(quiet=quiet) as reporter:
        return evaluate_target(recipe, target, folder, text=text, reporter=reporter)


def _show(evaluation: Evaluation, limit: int | None) -> None:
    from seawall.evaluation.view import headline_table, length_table

    console = results_console()
    console.print(headline_table((("rate", evaluation.result),), {}))
    if evaluation.result.lengths:
        console.print(length_table(evaluation.result))
    print_limit(console, limit)
    console.print(str(evaluation.run.path), soft_wrap=True)

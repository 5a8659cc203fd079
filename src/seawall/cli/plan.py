"""`seawall plan RECIPE`: memory, disk and time of a verb, and whether it fits, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from seawall.cli.common import JsonOption, RecipeArgument, SetOption, print_json, quiet_libraries, read_recipe

if TYPE_CHECKING:
    from seawall.config.recipe import Recipe


def plan(
    recipe: RecipeArgument = None,
    verb: Annotated[
        Optional[str],  # noqa: UP045 - typer reads this annotation
        typer.Option(
            help="Verb to plan: run, profile, select, repair, eval, audit, steer, 'gene extract', 'gene graft', "
            "tune or landscape. Default: run, or the verb of the recipe's own section.",
            show_default=False,
        ),
    ] = None,
    sets: SetOption = None,
    memory: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="24GB", help="Memory of each GPU; default: this machine's device.", show_default=False),
    ] = None,
    devices: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, max=4096, help="Number of GPUs that share the model's layers.", show_default=False),
    ] = None,
    tflops: Annotated[
        float | None, typer.Option(min=0.001, help="Speed of the device in TFLOP/s, for an estimate of the time.")
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Measure the speed of this machine on layers of the model's shapes with random weights."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Estimate memory, disk and (with --measure or --tflops) time of a verb, and whether it fits; loads no weights."""
    resolved, _ = read_recipe(recipe, sets)
    show_plan(resolved, verb, memory=memory, devices=devices, tflops=tflops, measure=measure, as_json=as_json)


def show_plan(recipe: Recipe, verb: str | None, *, as_json: bool, **options: Any) -> None:
    """Prints the plan of a verb; the options are those of `plan_recipe`.

    Raises:
        SeawallError: the verb cannot be planned with this recipe.
    """
    with quiet_libraries():
        from seawall.jobs.plan import plan_recipe

    estimate = plan_recipe(recipe, verb=verb, **options)
    if as_json:
        print_json(estimate.as_document())
        return
    from seawall.jobs.facts import plan_facts
    from seawall.runs.console import PlainConsole

    PlainConsole().print(plan_facts(estimate.plan, estimate.verdict))

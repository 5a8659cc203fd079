"""`seawall plan RECIPE`: memory, disk and time that a run will need, before anything is loaded."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from seawall.cli.common import JsonOption, RecipeArgument, SetOption, print_json, quiet_libraries, read_recipe


def plan(
    recipe: RecipeArgument = None,
    sets: SetOption = None,
    tflops: Annotated[
        float | None, typer.Option(min=0.001, help="What the device multiplies per second, for a time estimate.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate memory, disk and (with --tflops) time of a recipe from the model's config alone."""
    wanted, _ = read_recipe(recipe, sets)
    with quiet_libraries():
        from seawall.jobs.plan import plan_recipe

    found = plan_recipe(wanted, tflops)
    if as_json:
        print_json({**asdict(found), "peak": found.peak, "disk": found.disk})
        return
    from rich.console import Console

    from seawall.jobs.plan import plan_facts

    Console(highlight=False).print(plan_facts(found))

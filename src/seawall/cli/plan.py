"""`seawall plan RECIPE`: estimates the memory, disk and time of a run, before anything is loaded."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from seawall.cli.common import JsonOption, RecipeArgument, SetOption, print_json, quiet_libraries, read_recipe


def plan(
    recipe: RecipeArgument = None,
    sets: SetOption = None,
    tflops: Annotated[
        float | None, typer.Option(min=0.001, help="Speed of the device in TFLOP/s, for an estimate of the time.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate memory, disk and (with --tflops) time of a run; loads no weights."""
    resolved, _ = read_recipe(recipe, sets)
    with quiet_libraries():
        from seawall.jobs.plan import plan_recipe

    estimate = plan_recipe(resolved, tflops)
    if as_json:
        print_json({**asdict(estimate), "peak": estimate.peak, "disk": estimate.disk})
        return
    from seawall.jobs.plan import plan_facts
    from seawall.runs.console import PlainConsole

    PlainConsole().print(plan_facts(estimate))

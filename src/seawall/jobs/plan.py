"""`seawall plan` and `seawall doctor`: memory, disk and time of a run, and facts of a model, as terminal tables."""

from __future__ import annotations

from rich.table import Table

from seawall.config.recipe import Recipe
from seawall.data.sets import load_prompts
from seawall.evaluation.suite import build_suite
from seawall.models.files.inspect import inspect_model
from seawall.models.files.plan import DataSizes, Plan, plan_memory, rates_from_flops, recipe_workload
from seawall.shell.model import open_checkpoint


def facts(rows: list[tuple[str, str]]) -> Table:
    """A table of (name, value) rows."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def size(count: float) -> str:
    """A number of bytes with its unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def plan_facts(plan: Plan) -> Table:
    """The table of `seawall plan`."""
    rows = [
        ("weights", size(plan.weights)),
        ("trainable copies", size(plan.trainable)),
        ("gradients", size(plan.gradients)),
        ("optimizer", size(plan.optimizer)),
        ("activations, at most", size(plan.activations)),
        ("key-value cache, at most", size(plan.cache)),
        ("peak memory, at most", size(plan.peak)),
        ("disk: run folder", size(plan.run_folder)),
        ("disk: exported model", size(plan.export)),
    ]
    if plan.seconds is not None:
        rows.append(("time, at most", f"{plan.seconds / 60:,.0f} min"))
    return facts(rows)


def plan_recipe(recipe: Recipe, tflops: float | None = None) -> Plan:
    """Memory, disk and, with a rate of computation, time.

    Raises:
        SeawallError: the model or the prompts cannot be used.
    """
    summary = inspect_model(open_checkpoint(recipe.model).config)
    prompts = load_prompts(recipe.data)
    validation = build_suite(prompts, "validation", unseen=False, gold=False)
    plain = (prompts.benign.test, prompts.borderline.test)
    sizes = DataSizes(
        train_goals=len(prompts.goals.train),
        validation_prompts=len(validation.prompts()),
        test_goals=len(prompts.goals.test),
        test_prompts=sum(map(len, (*plain, prompts.wrapped("test"), prompts.wrapped_borderline("test")))),
        seen_families=len(prompts.seen_families),
        unseen_families=len(prompts.unseen_families),
    )
    rates = None if tflops is None else rates_from_flops(summary, tflops * 1e12)
    return plan_memory(summary, recipe_workload(summary, recipe, sizes), rates)

"""What a recipe will need, from its prompts and its model's configuration."""

from __future__ import annotations

from seawall.config.recipe import Recipe
from seawall.data.sets import load_prompts
from seawall.evaluation.suite import build_suite
from seawall.models.inspect import inspect_model
from seawall.models.plan import DataSizes, Plan, plan_memory, rates_from_flops, recipe_workload
from seawall.pipeline.model import located


def plan_recipe(recipe: Recipe, tflops: float | None = None) -> Plan:
    """Memory, disk and (with a rate) time.

    Raises:
        SeawallError: the model or the prompts cannot be used.
    """
    summary = inspect_model(located(recipe.model))
    prompts = load_prompts(recipe.data)
    validation = build_suite(prompts, "validation", unseen=False, gold=False)
    sizes = DataSizes(
        train_goals=len(prompts.goals.train),
        validation_prompts=len(validation.asked()),
        test_goals=len(prompts.goals.test),
        test_prompts=len(prompts.benign.test) + len(prompts.borderline.test),
        seen=len(prompts.seen_families),
        unseen=len(prompts.attacks_unseen),
    )
    rates = None if tflops is None else rates_from_flops(summary, tflops * 1e12)
    return plan_memory(summary, recipe_workload(summary, recipe, sizes), rates)

"""`model.device_map: auto` from a plan: one GPU where the verb fits it, else layers over all of them within limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from seawall.models.plan.stages import VLLM, Moment
from seawall.models.plan.verdict import GIB, Plan


@dataclass(frozen=True, slots=True)
class Placement:
    """The placement of a model.

    Attributes:
        device_map: of transformers: the first GPU, or a rule.
        max_memory: bytes for weights by GPU, of transformers; empty without limits.
        text: the decision and its reason in one sentence.
    """

    device_map: str | dict[str, int]
    max_memory: dict[str, int]
    text: str


def place(plan: Plan, free: Sequence[int]) -> Placement:
    """The placement of a model whose layers GPUs may share.

    One GPU has the model where the plan's peak fits the first. Else all share its layers, by whole layers:

    - A moment of the plan with terms t that layers share, and u that every GPU has by itself (`ON_ONE_DEVICE`), lets a
      GPU with m free bytes hold the part (m - u) / t of the layers. The least over all moments is its room. As limit
      for the weights, that is this part of their bytes.
    - transformers keeps room for one more layer on the first GPU, so that its limit is one layer higher.
    - GPUs with room for an equal share get one (`balanced`); otherwise each is filled in turn (`sequential`).
    - Filling whole layers wastes less than one on each GPU but the last. Where the rooms do not cover that too, limits
      would leave layers without a GPU: transformers then shares the layers evenly without any.

    Args:
        plan: of the verb, for one device.
        free: free bytes of each GPU, from the first.
    """
    verb, layers, count = plan.verb, plan.shapes.layers, len(free)
    if plan.peak <= free[0]:
        return Placement({"": 0}, {}, f"placed on one GPU: by its plan {verb} {_of(plan.peak, free[0])}")
    moments = [moment for stage in plan.stages for moment in stage.moments]
    reason = f"by its plan {verb} {_of(plan.peak, free[0])} of one"
    parts = [min(_part(moment, amount, first=index == 0) for moment in moments) for index, amount in enumerate(free)]
    if sum(parts) * layers < layers + count - 1:
        shared = Plan(verb, plan.stages, plan.shapes, count)
        little = f"{_of(shared.peak, min(free))} of the fullest; `seawall plan` names settings that take less"
        return Placement("balanced", {}, f"spread evenly over {count} GPUs without limits: by its plan {verb} {little}")
    weights = max(moment.terms["weights"] for moment in moments)
    limits = [int(part * weights) for part in parts]
    is_even = all(part * layers >= -(-layers // count) + 1 for part in parts)
    amounts = ", ".join(f"{limit / GIB:.1f}" for limit in limits)
    limits[0] += weights // layers
    return Placement(
        "balanced" if is_even else "sequential",
        {str(index): limit for index, limit in enumerate(limits)},
        f"spread over {count} GPUs: {reason}; weights are limited to {amounts} GiB, the remainder is for the work",
    )


def _part(moment: Moment, free: int, *, first: bool) -> float:
    """The part of the layers, at most all, with which a moment fits a GPU; a vLLM server is on the first alone."""
    fixed = moment.fixed
    shared = sum(moment.terms.values()) - sum(fixed.values())
    own = sum(size for name, size in fixed.items() if first or name != VLLM)
    return min(1.0, max(0.0, (free - own) / shared))


def _of(peak: int, free: int) -> str:
    return f"takes {peak / GIB:.1f} of {free / GIB:.1f} GiB free"

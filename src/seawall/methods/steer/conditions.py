"""The chosen interventions and their controls, as named conditions for held-out prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch

from seawall.artifacts.directions import Directions
from seawall.artifacts.steering import SteeringCandidate, SteeringMode
from seawall.errors import ConfigError
from seawall.methods.steer.choose import CONSTRAINED, EXPERT, LAYER, SearchOutcome
from seawall.methods.steer.controls import random_directions
from seawall.methods.steer.interventions import SIGN, applied
from seawall.methods.steer.score import divergence
from seawall.methods.steer.target import Prompt, TargetModel, batches, last_logits
from seawall.models.hidden.intervene import SITES, Addition, Site, ablated, added

HALVES: dict[str, tuple[Site, ...]] = {"attention": ("attention",), "mlp": ("mlp",), "both": ("attention", "mlp")}
"""The sites of the test of attention against MLP or MoE."""


@dataclass(frozen=True, eq=False)
class Condition:
    """A change of the model.

    Attributes:
        name: file name of its samples: lower-case letters, digits, hyphens.
        series: `layer`, `expert`, `all_experts`, `several`, `site` (attention against MLP or MoE) or `control`.
        enter: a new context manager that makes the change.
    """

    name: str
    series: str
    enter: Callable[[], AbstractContextManager[None]]


def conditions(
    target: TargetModel,
    directions: Directions,
    outcome: SearchOutcome,
    mode: SteeringMode,
    *,
    random_seeds: Sequence[int],
) -> list[Condition]:
    """Every change to measure on held-out prompts, the layer's direction first.

    Args:
        target: the model.
        directions: of this model.
        outcome: the choices of the search.
        mode: whether directions are subtracted or added.
        random_seeds: one control with random directions per seed.
    """
    layer = outcome.choice(LAYER)
    assert layer is not None
    rows = [Condition("layer", "layer", partial(applied, target, directions, layer, mode))]
    rows += _experts(target, directions, outcome, mode)
    rows += _sites(target, directions, layer, mode)
    for number, seed in enumerate(random_seeds, 1):
        drawn = random_directions(directions, seed)
        rows.append(Condition(f"random-direction-{number}", "control", partial(applied, target, drawn, layer, mode)))
    return rows


_SERIES = {
    EXPERT: "expert",
    CONSTRAINED: "expert",
    "all_experts": "all_experts",
    "pair": "several",
    "triple": "several",
    "random_expert": "control",
}


def _experts(
    target: TargetModel, directions: Directions, outcome: SearchOutcome, mode: SteeringMode
) -> Iterator[Condition]:
    """The choices among experts; single experts and whole layers also restricted to tokens routed to them."""
    for name, series in _SERIES.items():
        choice = outcome.choice(name)
        if choice is not None:
            named = name.replace("_", "-")
            yield Condition(named, series, partial(applied, target, directions, choice, mode))
            if series in ("expert", "all_experts"):
                restricted = partial(applied, target, directions, choice, mode, top_k_only=True)
                yield Condition(f"{named}-top-k", series, restricted)


def _sites(
    target: TargetModel, directions: Directions, layer: SteeringCandidate, mode: SteeringMode
) -> Iterator[Condition]:
    """The layer's direction at the output of attention, of the MLP or MoE, and of both.

    `ablated-*`: removed from these outputs in all layers, and kept in the others. `layer-*`: subtracted or added in its
    own layer, with half the coefficient at each of two sites, so that the sum is the same.
    """
    direction_D = directions.of_layer(layer.layer, layer.position)
    if mode == "suppress":
        for name, sites in {**HALVES, "everywhere": SITES}.items():
            yield Condition(f"ablated-{name}", "site", partial(ablated, target.model, direction_D, sites=sites))
    for name, sites in HALVES.items():
        coefficient = SIGN[mode] * layer.coefficient / len(sites)
        additions = [Addition(layer.layer, direction_D, coefficient, site) for site in sites]
        yield Condition(f"layer-{name}", "site", partial(added, target.model, additions))


def harmless_kl(target: TargetModel, prompts: Sequence[Prompt], condition: Condition) -> float:
    """Mean divergence of the next token from the original model's on these prompts, in nats.

    Measure it before generating: greedy generation does not reveal NaN logits.

    Raises:
        ConfigError: the logits under the change are not finite.
    """
    values = []
    for _, batch in batches(prompts, target.batch_size):
        original_BV = last_logits(target.model, batch)
        with condition.enter():
            changed_BV = last_logits(target.model, batch)
        values.append(divergence(original_BV, changed_BV))
    mean = float(torch.cat(values).mean())
    if not torch.isfinite(torch.tensor(mean)):
        raise ConfigError(
            f"the change {condition.name!r} gives logits that are not finite",
            got=f"a divergence of {mean} on harmless prompts",
            remedy="lower the coefficient (steer.layer_coefficient, steer.search.coefficients), or load the model in "
            "bfloat16 or float32 (model.dtype)",
        )
    return mean

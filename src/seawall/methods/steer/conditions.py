"""The model under what was found, as named conditions for held-out prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch

from seawall.artifacts.directions import Directions
from seawall.artifacts.steering import SteeringCandidate, SteeringMode
from seawall.errors import ConfigError
from seawall.methods.steer.changes import SIGN, applied
from seawall.methods.steer.choose import CONSTRAINED, EXPERT, LAYER, Found
from seawall.methods.steer.controls import random_directions
from seawall.methods.steer.score import divergence
from seawall.methods.steer.target import Prompt, SteeringTarget, batches, last_logits
from seawall.models.hidden.intervene import SITES, Addition, Site, ablated, added

HALVES: dict[str, tuple[Site, ...]] = {"attention": ("attention",), "mlp": ("mlp",), "both": ("attention", "mlp")}
"""Where the test of attention against MLP or MoE changes the model."""


@dataclass(frozen=True, eq=False)
class Condition:
    """A change of the model.

    Attributes:
        name: names it in files: small letters, digits, hyphens.
        series: `layer`, `expert`, `all_experts`, `several`, `site` (attention against MLP or MoE) or `control`.
        enter: makes the change; once for every use.
    """

    name: str
    series: str
    enter: Callable[[], AbstractContextManager[None]]


def conditions(
    target: SteeringTarget, directions: Directions, found: Found, mode: SteeringMode, *, random_seeds: Sequence[int]
) -> list[Condition]:
    """Every change that is measured on held-out prompts, the layer's direction first.

    Args:
        target: the model.
        directions: of this model.
        found: what was chosen.
        mode: whether directions are taken away or added.
        random_seeds: of random directions, one control each.
    """
    layer = found.choice(LAYER)
    assert layer is not None
    rows = [Condition("layer", "layer", partial(applied, target, directions, layer, mode))]
    rows += _experts(target, directions, found, mode)
    rows += _sites(target, directions, layer, mode)
    for at, seed in enumerate(random_seeds, 1):
        drawn = random_directions(directions, seed)
        rows.append(Condition(f"random-direction-{at}", "control", partial(applied, target, drawn, layer, mode)))
    return rows


_SERIES = {
    EXPERT: "expert",
    CONSTRAINED: "expert",
    "all_experts": "all_experts",
    "pair": "several",
    "triple": "several",
    "random_expert": "control",
}


def _experts(target: SteeringTarget, directions: Directions, found: Found, mode: SteeringMode) -> Iterator[Condition]:
    """The choices among experts; single ones and whole layers also on those tokens alone that are sent to them."""
    for name, series in _SERIES.items():
        choice = found.choice(name)
        if choice is not None:
            named = name.replace("_", "-")
            yield Condition(named, series, partial(applied, target, directions, choice, mode))
            if series in ("expert", "all_experts"):
                restricted = partial(applied, target, directions, choice, mode, top_k_only=True)
                yield Condition(f"{named}-top-k", series, restricted)


def _sites(
    target: SteeringTarget, directions: Directions, layer: SteeringCandidate, mode: SteeringMode
) -> Iterator[Condition]:
    """The layer's direction at the output of attention, of the MLP or MoE, and of both.

    In all layers it is ablated: what these parts write along it is taken out, and stays where others wrote it. In its
    own layer it is subtracted or added, half of it at each where it is at both, so that the sum is the same.
    """
    direction_D = directions.of_layer(layer.layer, layer.position)
    if mode == "suppress":
        for name, sites in {**HALVES, "everywhere": SITES}.items():
            yield Condition(f"ablated-{name}", "site", partial(ablated, target.model, direction_D, sites=sites))
    for name, sites in HALVES.items():
        coefficient = SIGN[mode] * layer.coefficient / len(sites)
        additions = [Addition(layer.layer, direction_D, coefficient, site) for site in sites]
        yield Condition(f"layer-{name}", "site", partial(added, target.model, additions))


def harmless_kl(target: SteeringTarget, prompts: Sequence[Prompt], condition: Condition) -> float:
    """Mean divergence of the next token from the original model's on these prompts, in nats.

    Ask this before generating: greedy generation does not show broken logits.

    Raises:
        ConfigError: the change makes logits that are not finite.
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
            f"the change {condition.name!r} makes logits that are not finite",
            got=f"a divergence of {mean} on harmless prompts",
            remedy="lower the coefficient (steer.layer_coefficient, steer.search.coefficients), or load the model in "
            "bfloat16 or float32 (model.dtype)",
        )
    return mean

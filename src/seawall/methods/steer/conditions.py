"""The chosen interventions and their controls, as named conditions for held-out prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from seawall.artifacts.directions import Directions
from seawall.artifacts.steering import SteeringCandidate, SteeringMode
from seawall.data.batching import Batch
from seawall.errors import ConfigError
from seawall.methods.steer.choose import CONSTRAINED, EXPERT, LAYER, STRENGTH, SearchOutcome
from seawall.methods.steer.controls import random_directions, shared_directions
from seawall.methods.steer.interventions import SIGN, Additions, ablated_in, additions
from seawall.methods.steer.logits import logits_alone, without_logits
from seawall.methods.steer.score import divergence
from seawall.methods.steer.target import Prompt, TargetModel, last_logits, measured, shared
from seawall.models.everywhere import Change, everywhere
from seawall.models.hidden.intervene import SITES, Addition, Site
from seawall.models.hidden.routed import Part, has_shared_experts, part_ablated
from seawall.models.hidden.routes import route_agreement, route_preserving
from seawall.models.moe.find import MoEModel
from seawall.models.replicas import model_of

HALVES: dict[str, tuple[Site, ...]] = {"attention": ("attention",), "mlp": ("mlp",), "both": ("attention", "mlp")}
"""The sites of the test of attention against MLP or MoE."""
ROUTE_PRESERVING = "layer-route-preserving"
"""The layer's direction without what routers read of it, in mode `induce`."""
PARTS: tuple[Part, ...] = ("routed", "shared")
SHARED, RANDOM = "shared", "random"
"""Names of the controls in an expert's own place: `expert-shared`, `expert-random-1`, ..."""
WITHOUT_LOGITS, LOGITS_ALONE = "layer-without-logits", "logits-direction"
"""The decoy check: the direction without what moves the refusal tokens' logits, and the direction that moves them."""


@dataclass(frozen=True, eq=False)
class Condition:
    """A change of the model.

    Attributes:
        name: file name of its samples: lower-case letters, digits, hyphens.
        series: `layer`, `expert`, `all_experts`, `several`, `site` (attention against MLP or MoE) or `control`.
        target: the model.
        change: makes the change of `target.subject`.
        plain_only: measured on plain harmful prompts alone.
    """

    name: str
    series: str
    target: TargetModel
    change: Change[None]
    plain_only: bool = False

    def enter(self) -> AbstractContextManager[None]:
        """Inside, the change is made in every process of a launch."""
        return everywhere(self.target.subject, self.change)


def conditions(
    target: TargetModel,
    directions: Directions,
    outcome: SearchOutcome,
    mode: SteeringMode,
    *,
    random_seeds: Sequence[int],
    vector_seeds: Sequence[int] = (),
) -> list[Condition]:
    """Every change to measure on held-out prompts, the layer's direction first.

    Args:
        target: the model.
        directions: of this model.
        outcome: the choices of the search.
        mode: whether directions are subtracted or added.
        random_seeds: one control with random directions per seed.
        vector_seeds: one control in each single expert's own place per seed.
    """
    layer = outcome.choice(LAYER)
    assert layer is not None
    rows = [Condition("layer", "layer", target, additions(directions, layer, mode).entered)]
    rows += _experts(target, directions, outcome, mode)
    if mode == "suppress":
        rows += _own_controls(target, directions, outcome, vector_seeds)
        rows += _logits(target, directions, layer)
    rows += _sites(target, directions, layer, mode)
    if mode == "induce" and target.moe is not None:
        preserving_D, _ = route_preserving(target.moe, layer.layer, directions.of_layer(layer.layer, layer.position))
        preserving = Additions((Addition(layer.layer, preserving_D.cpu(), SIGN[mode] * layer.coefficient),), ())
        rows.append(Condition(ROUTE_PRESERVING, "layer", target, preserving.entered))
    for number, seed in enumerate(random_seeds, 1):
        drawn = random_directions(directions, seed)
        change = additions(drawn, layer, mode).entered
        rows.append(Condition(f"random-direction-{number}", "control", target, change))
    return rows


_SERIES = {
    STRENGTH: "layer",
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
            yield Condition(named, series, target, additions(directions, choice, mode).entered)
            if series in ("expert", "all_experts"):
                restricted = additions(directions, choice, mode, top_k_only=True)
                yield Condition(f"{named}-top-k", series, target, restricted.entered)


def _own_controls(
    target: TargetModel, directions: Directions, outcome: SearchOutcome, seeds: Sequence[int]
) -> Iterator[Condition]:
    """Each single expert's controls in its own place, at its coefficient, as long as its direction.

    The shared expert's direction, and random vectors: what does as much as the expert says that the expert is nothing
    special.
    """
    drawn = [random_directions(directions, seed) for seed in seeds]
    for name in (EXPERT, CONSTRAINED):
        choice, named = outcome.choice(name), name.replace("_", "-")
        if choice is None:
            continue
        changes = {f"{named}-{RANDOM}-{number}": random for number, random in enumerate(drawn, 1)}
        if directions.of_shared(choice.experts[0][0], choice.position) is not None:
            changes[f"{named}-{SHARED}"] = shared_directions(directions)
        for control, changed in changes.items():
            change = additions(changed, choice, "suppress").entered
            yield Condition(control, "control", target, change, plain_only=True)


def _logits(target: TargetModel, directions: Directions, layer: SteeringCandidate) -> Iterator[Condition]:
    """The layer's direction without its component along the refusal tokens' logits, and that component's direction."""
    if directions.logits_D is None or not directions.logits_D.any():
        return
    for name, changed in (
        (WITHOUT_LOGITS, without_logits(directions)),
        (LOGITS_ALONE, logits_alone(directions)),
    ):
        yield Condition(name, "control", target, additions(changed, layer, "suppress").entered, plain_only=True)


def _sites(
    target: TargetModel, directions: Directions, layer: SteeringCandidate, mode: SteeringMode
) -> Iterator[Condition]:
    """The layer's direction at the output of attention, of the MLP or MoE, and of both.

    `ablated-*`: removed from these outputs in all layers, and kept in the others. `layer-*`: subtracted or added in its
    own layer, with half the coefficient at each of two sites, so that the sum is the same.
    """
    direction_D = directions.of_layer(layer.layer, layer.position).clone()
    if mode == "suppress":
        for name, sites in {**HALVES, "everywhere": SITES}.items():
            yield Condition(f"ablated-{name}", "site", target, partial(ablated_in, direction_D, sites=sites))
        if target.moe is not None and has_shared_experts(target.moe):
            for part in PARTS:
                change = partial(part_ablated, direction_D=direction_D, part=part)
                yield Condition(f"ablated-{part}", "site", target, change)
    for name, sites in HALVES.items():
        coefficient = SIGN[mode] * layer.coefficient / len(sites)
        at_sites = Additions(tuple(Addition(layer.layer, direction_D, coefficient, site) for site in sites), ())
        yield Condition(f"layer-{name}", "site", target, at_sites.entered)


def agreement(target: TargetModel, prompts: Sequence[Prompt], condition: Condition) -> float:
    """Share of the tokens' choices of experts on these prompts that a condition leaves as they were."""
    assert target.moe is not None
    moe, equal, count = target.moe, 0.0, 0

    def agree(batch: Batch) -> tuple[float, int]:
        def run() -> Tensor:
            last_logits(target.model, batch)
            return batch.attention_mask_BT

        return route_agreement(moe, run, partial(condition.change, moe))

    for _, (stays, choices) in measured(prompts, target.batch_size, agree):
        equal, count = equal + stays, count + choices
    return equal / count


def harmless_kl(target: TargetModel, prompts: Sequence[Prompt], condition: Condition) -> float:
    """Mean divergence of the next token from the original model's on these prompts, in nats.

    Measure it before generating: greedy generation does not reveal NaN logits.

    Raises:
        ConfigError: the logits under the change are not finite.
    """

    diverge = partial(_divergence, condition.change)
    mean = float(torch.cat([value for _, value in shared(target, prompts, diverge)]).mean())
    if not torch.isfinite(torch.tensor(mean)):
        raise ConfigError(
            f"the change {condition.name!r} gives logits that are not finite",
            got=f"a divergence of {mean} on harmless prompts",
            remedy="lower the coefficient (steer.layer_coefficient, steer.search.coefficients), or load the model in "
            "bfloat16 or float32 (model.dtype)",
        )
    return mean


def _divergence(change: Change[None], subject: PreTrainedModel | MoEModel, batch: Batch) -> Tensor:
    """Divergence of each prompt's next token under a change (B,)."""
    original_BV = last_logits(model_of(subject), batch)
    with change(subject):
        changed_BV = last_logits(model_of(subject), batch)
    return divergence(original_BV, changed_BV).cpu()

"""A study of steering: directions, search, and what was chosen on held-out prompts."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from seawall.artifacts.audit import AuditFigure
from seawall.artifacts.directions import Directions
from seawall.artifacts.groups import PLAIN, POOLED
from seawall.artifacts.hardening import Effect, Hardening, induces
from seawall.artifacts.steering import HARDENING, SteeringResult
from seawall.evaluation.pooled import with_pooled
from seawall.methods.steer.claim import claim
from seawall.methods.steer.conditions import conditions
from seawall.methods.steer.context import SteerContext
from seawall.methods.steer.figures import recovered, routing_correlation
from seawall.methods.steer.held_out import ORIGINAL, SYSTEM, UNDER_SYSTEM, HeldOut, HeldOutCondition, Samples, settings
from seawall.methods.steer.stages import SEARCH, found_of, make_target, read_directions, search_stage

LAYER = "layer"


_EVERYWHERE = "ablated-everywhere"


def study(context: SteerContext, scratch: Path) -> None:
    """The whole study, into a stage's scratch folder."""
    reporter = context.reporter
    context.held_out()  # Sides without held-out prompts are met before hours of search.
    reporter.stage("Directions, from training prompts")
    directions = read_directions(context, scratch)
    target = make_target(context, directions.refusal_tokens)
    reporter.stage("Search, on validation prompts")
    searched = search_stage(context, target, directions, scratch)
    seeds = [context.config.seed + at for at in range(context.config.controls.random_directions)]
    changes = conditions(target, directions, found_of(searched), context.config.mode, random_seeds=seeds)
    rows = settings(context, changes)
    reporter.stage("What was chosen, on held-out prompts")
    held_out = HeldOut(context, target, scratch)
    samples, kls = held_out.measure(rows)
    found = replace(
        searched,
        conditions=tuple(held_out.condition(row, samples[row.name], kls.get(row.name)) for row in rows),
        changes=tuple(held_out.changes(samples, _pairs(rows))),
        figures={**searched.figures, **_figures(context, searched, directions, samples)},
    )
    found = replace(found, claim=claim(found, directions))
    found.save(scratch)
    if context.config.mode == "induce":
        _harden(context, found, directions, scratch / HARDENING)
    if (scratch / SEARCH).is_dir():
        shutil.rmtree(scratch / SEARCH)


def _pairs(rows: Sequence[HeldOutCondition]) -> list[tuple[str, str]]:
    """(condition, reference): everything against the model as it is, and every other change against the layer's."""
    own = [(row.name, row.reference) for row in rows if row.reference is not None]
    return own + [(name, LAYER) for name, reference in own if reference == ORIGINAL and name != LAYER]


def moved_group(mode: str) -> str:
    """The group whose rate steering is to move."""
    return PLAIN if mode == "suppress" else POOLED


def _figures(
    context: SteerContext, searched: SteeringResult, directions: Directions, samples: Samples
) -> dict[str, AuditFigure]:
    """Shares of the layer-level effect, those of attention and MLP in the ablation, and the rank correlation."""
    config, group = context.recipe.eval, moved_group(context.config.mode)
    pooled = {name: with_pooled(some) for name, some in samples.items()}
    wholes = {**dict.fromkeys(pooled, LAYER)}
    wholes |= {name: _EVERYWHERE for name in pooled if name.startswith("ablated-")}
    wholes |= {name: f"{UNDER_SYSTEM}{LAYER}" for name in pooled if name.startswith(UNDER_SYSTEM)}
    found: dict[str, AuditFigure] = {}
    for name, whole in wholes.items():
        reference = SYSTEM if name.startswith(UNDER_SYSTEM) else ORIGINAL
        if name in (ORIGINAL, SYSTEM, whole) or whole not in pooled:
            continue
        share = recovered(pooled[reference], pooled[whole], pooled[name], group, config)
        if share is not None:
            found[f"share:{name}"] = share
    correlation = routing_correlation(searched, directions, max_kl=context.config.search.max_kl, config=config)
    if correlation is not None:
        found["rank_correlation"] = correlation
    threshold = context.config.search.routing_threshold
    found["experts_above"] = AuditFigure(float(len(directions.above(threshold))))
    found["max_kl"] = AuditFigure(context.config.search.max_kl)
    return found


def _harden(context: SteerContext, found: SteeringResult, directions: Directions, folder: Path) -> None:
    """The artifact for `seawall.load`, where refusals became more; else a line that says why there is none."""
    chosen = found.choice(LAYER)
    assert chosen is not None
    before, after = found.condition(ORIGINAL).rates, found.condition(LAYER).rates
    effects: Mapping[str, Effect] = {
        one.group: Effect(before[one.group], after[one.group], one.difference, one.low, one.high, one.p)
        for one in found.changes
        if (one.condition, one.reference) == (LAYER, ORIGINAL) and one.group != POOLED
    }
    attacks = found.change(LAYER, ORIGINAL, POOLED)
    if attacks is None or not attacks.high < 0:
        context.reporter.say("no hardening is left: attack success did not clearly fall on held-out prompts")
        return
    if not induces(effects):
        context.reporter.say("no hardening is left: harmful requests are refused less on held-out prompts")
        return
    Hardening(
        model_fingerprint=found.model_fingerprint,
        dtype=context.recipe.model.dtype,
        layer=chosen.layer,
        position=chosen.position,
        coefficient=chosen.coefficient,
        effects=effects,
        vector_D=directions.of_layer(chosen.layer, chosen.position),
    ).save(folder)

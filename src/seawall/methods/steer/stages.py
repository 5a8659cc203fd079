"""The study of refusal steering (arXiv 2606.04160) as one stage: directions, search, held-out conditions, claim."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from seawall.artifacts.audit import AuditFigure
from seawall.artifacts.directions import Directions
from seawall.artifacts.groups import BENIGN, PLAIN, POOLED
from seawall.artifacts.steering import HARDENING, SteeringResult
from seawall.evaluation.pooled import with_pooled
from seawall.methods.steer.choose import LAYER
from seawall.methods.steer.claim import claim
from seawall.methods.steer.conditions import RANDOM, ROUTE_PRESERVING, Condition, agreement, conditions
from seawall.methods.steer.context import SEARCH, SteerContext
from seawall.methods.steer.figures import over_vectors, recovered, routing_correlation
from seawall.methods.steer.hardening import write_hardening
from seawall.methods.steer.held_out import (
    ORIGINAL,
    SYSTEM,
    UNDER_SYSTEM,
    HeldOutEvaluation,
    Measurement,
    SamplesByCondition,
    measurements,
)
from seawall.methods.steer.logits import cosine
from seawall.methods.steer.selection import outcome_of, read_directions, search_directions, target_model
from seawall.methods.steer.target import TargetModel, encode_prompts
from seawall.methods.steer.verdict import SINGLES, is_own_control, verdict
from seawall.models.hidden.separate import require_separate_halves

VECTOR_SEEDS = 1000
"""First seed of the random vectors in an expert's place; those of the layer's controls begin at 0."""
_EVERYWHERE = "ablated-everywhere"
_COMPARED = (
    ("ablated-attention", "ablated-mlp"),
    ("ablated-routed", "ablated-shared"),
    *((name, reference) for name in SINGLES for reference in ("random-expert", "layer-strength")),
)
"""Pairs of conditions that the claim compares, beside each single expert and its controls."""


def steer(context: SteerContext, scratch: Path) -> None:
    """The stage `steer`, into its scratch folder; each part is saved as soon as it is finished."""
    reporter = context.reporter
    require_separate_halves(context.opened.model)
    context.held_out()  # raises for missing held-out prompts before hours of search
    # Layer directions r[l, p] and expert directions v_e: differences in means over training prompts.
    reporter.stage("Directions, from training prompts")
    directions = read_directions(context, scratch)
    target = target_model(context, directions.refusal_tokens)
    # Select (l, p) by ablation; search experts x positions x coefficients in two stages, on validation prompts.
    reporter.stage("Search, on validation prompts")
    searched = search_directions(context, target, directions, scratch)
    # Held out: the choices, attention against MLP or MoE, random directions, the safety system prompt.
    changes = _changes(context, target, directions, searched)
    rows = measurements(context, changes)
    reporter.stage("The choices, on held-out prompts")
    held_out = HeldOutEvaluation(context, target, scratch)
    samples, divergences = held_out.measure(rows)
    # The share of the layer-level effect that each expert recovers, and whether routing predicts which expert steers.
    result = replace(
        searched,
        conditions=tuple(held_out.condition(row, samples[row.name], divergences.get(row.name)) for row in rows),
        changes=tuple(held_out.changes(samples, _pairs(rows))),
        figures={
            **searched.figures,
            **_figures(context, searched, directions, samples),
            **_agreements(context, target, changes),
        },
    )
    result = replace(result, claim=claim(result, directions))
    if context.config.mode == "suppress":
        result = replace(result, verdict=verdict(result, directions))
    result.save(scratch)
    if context.config.mode == "induce":
        write_hardening(context, result, directions, scratch / HARDENING)
    if (scratch / SEARCH).is_dir():
        shutil.rmtree(scratch / SEARCH)


def _changes(
    context: SteerContext, target: TargetModel, directions: Directions, searched: SteeringResult
) -> list[Condition]:
    """The conditions; the seeds of all controls follow from the recipe's."""
    seed, controls = context.config.seed, context.config.controls
    return conditions(
        target,
        directions,
        outcome_of(searched),
        context.config.mode,
        random_seeds=[seed + index for index in range(controls.random_directions)],
        vector_seeds=[VECTOR_SEEDS + seed + index for index in range(controls.random_vectors)],
    )


def _agreements(context: SteerContext, target: TargetModel, changes: Sequence[Condition]) -> dict[str, AuditFigure]:
    """Share of routing choices that the layer's direction leaves, with and without what routers read of it."""
    if context.config.mode != "induce" or target.moe is None:
        return {}
    harmless = [prompt.prompt for prompt in context.held_out() if prompt.group == BENIGN]
    prompts = encode_prompts(context.opened.tokenizer, harmless)
    rows = [row for row in changes if row.name in (LAYER, ROUTE_PRESERVING)]
    return {f"route_agreement:{row.name}": AuditFigure(agreement(target, prompts, row)) for row in rows}


def moved_group(mode: str) -> str:
    """The group whose rate steering is meant to move."""
    return PLAIN if mode == "suppress" else POOLED


def _pairs(rows: Sequence[Measurement]) -> list[tuple[str, str]]:
    """(condition, reference): each against its reference, and each change also against the layer's direction."""
    pairs = [(row.name, row.reference) for row in rows if row.reference is not None]
    pairs += [(name, LAYER) for name, reference in pairs if reference == ORIGINAL and name != LAYER]
    names = dict.fromkeys(row.name for row in rows)  # in order: a set's would differ from process to process
    compared = [
        *_COMPARED,
        *((name, control) for name in SINGLES for control in names if is_own_control(control, name)),
    ]
    return pairs + [pair for pair in compared if names.keys() >= {*pair}]


def _figures(
    context: SteerContext, searched: SteeringResult, directions: Directions, samples: SamplesByCondition
) -> dict[str, AuditFigure]:
    """Recovered shares of the layer-level effect and of the full ablation, and the rank correlation."""
    config, group = context.recipe.eval, moved_group(context.config.mode)
    pooled = {name: with_pooled(condition_samples) for name, condition_samples in samples.items()}
    full_effects = {**dict.fromkeys(pooled, LAYER)}
    full_effects |= {name: _EVERYWHERE for name in pooled if name.startswith("ablated-")}
    full_effects |= {name: f"{UNDER_SYSTEM}{LAYER}" for name in pooled if name.startswith(UNDER_SYSTEM)}
    figures: dict[str, AuditFigure] = {}
    for name, full in full_effects.items():
        reference = SYSTEM if name.startswith(UNDER_SYSTEM) else ORIGINAL
        if name in (ORIGINAL, SYSTEM, full) or full not in pooled:
            continue
        share = recovered(pooled[reference], pooled[full], pooled[name], group, config)
        if share is not None:
            figures[f"share:{name}"] = share
    for name in SINGLES:
        vectors = [rows for control, rows in pooled.items() if control.startswith(f"{name}-{RANDOM}-")]
        moved = over_vectors(pooled[ORIGINAL], vectors, group, config)
        if moved is not None:
            figures[f"random_vectors:{name}"] = moved
    layer = searched.choice(LAYER)
    if layer is not None and directions.logits_D is not None:
        figures["logits_cosine"] = AuditFigure(cosine(directions, layer.layer, layer.position))
    correlation = routing_correlation(searched, directions, max_kl=context.config.search.max_kl, config=config)
    if correlation is not None:
        figures["rank_correlation"] = correlation
    threshold = context.config.search.routing_threshold
    figures["experts_above"] = AuditFigure(float(len(directions.above(threshold))))
    figures["max_kl"] = AuditFigure(context.config.search.max_kl)
    return figures

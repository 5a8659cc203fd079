"""Directions from the training part and choices from the validation part, each kept as soon as it is made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from seawall.artifacts.audit import AuditFigure
from seawall.artifacts.directions import NAME as DIRECTIONS
from seawall.artifacts.directions import Directions
from seawall.artifacts.steering import NAME as STEERING
from seawall.artifacts.steering import SteeringCandidate, SteeringResult
from seawall.errors import DataError
from seawall.methods.steer.bench import Bench
from seawall.methods.steer.changes import applied, way_of
from seawall.methods.steer.choose import LAYER, ExpertSearch, Found, find_layer
from seawall.methods.steer.context import SteerContext
from seawall.methods.steer.extract import extract
from seawall.methods.steer.figures import ON_FEW, ORIGINAL_SCORE
from seawall.methods.steer.options import ExpertOptions, LayerLimits, SearchLimits
from seawall.methods.steer.score import refusal_tokens
from seawall.methods.steer.search import asking
from seawall.methods.steer.target import SteeringTarget, encoded
from seawall.methods.steer.verdicts import HARMLESS_KL
from seawall.models.generate import generate
from seawall.shell.validation import validator

SEARCH = "search"
"""Where what was chosen lies until it is measured."""


def read_directions(context: SteerContext, scratch: Path) -> Directions:
    """The directions, from `scratch` where an earlier attempt left them.

    Raises:
        DataError: no refusals, a side without prompts, a position outside the template.
    """
    if (scratch / f"{DIRECTIONS}.json").is_file():
        return Directions.load(scratch, fingerprint=context.opened.fingerprint)
    config, tokenizer = context.config, context.opened.tokenizer
    harmful, harmless = (encoded(tokenizer, side) for side in (context.harmful("train"), context.harmless("train")))
    target = make_target(context, _refusal_tokens(context))
    context.reporter.say(f"refusals open with {', '.join(_shown(context, one) for one in target.refusal_tokens)}")
    found = extract(
        target,
        harmful,
        harmless,
        positions=config.positions,
        experts=config.experts,
        progress=lambda done, total: context.reporter.step("directions", done, total),
    )
    found.save(scratch)
    return found


def make_target(context: SteerContext, tokens: tuple[int, ...]) -> SteeringTarget:
    """The model, and the tokens by which its refusal is read."""
    opened = context.opened
    return SteeringTarget(opened.model, opened.moe_if_any, opened.fingerprint, tokens, context.config.batch_size)


def search_stage(
    context: SteerContext, target: SteeringTarget, directions: Directions, scratch: Path
) -> SteeringResult:
    """Everything that was tried and chosen, without conditions; from `scratch` where an earlier attempt left it.

    Raises:
        DataError: nothing passes the checks.
    """
    folder = scratch / SEARCH
    if (folder / STEERING).is_file():
        return SteeringResult.load(folder)
    found, sides = Found(), (context.harmful("validation"), context.harmless("validation"))
    moved, harmless = (encoded(context.opened.tokenizer, side) for side in sides)
    bench = Bench(target, directions, "suppress", moved=moved, harmless=harmless, progress=context.reporter.step)
    figures = {
        **_originals(bench, ORIGINAL_SCORE["suppress"]),
        "original_harmless_score": bench.original_score("harmless"),
    }
    layer, cap = _layer(context, bench, found)
    figures |= {"layer_cap": cap, "layer_max_kl": context.config.layer_max_kl}
    context.reporter.say(
        f"layer {layer.layer}, token {layer.position}: the refusal score goes from "
        f"{figures['original_score']:.2f} to {layer.refusal_score:.2f}"
    )
    asked = sides[0]
    if context.config.mode == "induce":
        layer = _strength(context, target, directions, found)
        asked = context.attacks("validation")
        moved = encoded(context.opened.tokenizer, asked)
        bench = Bench(target, directions, "induce", moved=moved, harmless=harmless, progress=context.reporter.step)
        figures |= _originals(bench, ORIGINAL_SCORE["induce"])
    if directions.candidates:
        limits = search_limits(context)
        ask = asking(bench, context.opened.tokenizer, context.judge, max_new_tokens=limits.judged_tokens)
        most = context.config.search.judged_prompts
        ExpertSearch(bench, ask, asked[:most], limits, expert_options(context), found).run(layer)
        figures |= {"search_cost": float(found.cost), "search_full_cost": float(found.full_cost)}
    result = SteeringResult(
        model_fingerprint=target.fingerprint,
        mode=context.config.mode,
        candidates=tuple(found.candidates),
        chosen=found.chosen,
        figures={name: AuditFigure(value) for name, value in figures.items()},
    )
    result.save(folder)
    return result


def _originals(bench: Bench, name: str) -> dict[str, float]:
    """The original model's score on the prompts whose refusal is to be moved, and on the first of them alone."""
    return {name: bench.original_score("moved"), f"{name}{ON_FEW}": bench.original_score("moved", ["few"])}


def found_of(result: SteeringResult) -> Found:
    """What was tried and chosen, as the conditions are made from it."""
    return Found(candidates=list(result.candidates), chosen=dict(result.chosen))


def _layer(context: SteerContext, bench: Bench, found: Found) -> tuple[SteeringCandidate, float]:
    """The layer's direction, and the cap on harmless divergence that it keeps to: the recipe's, doubled as need be.

    Raises:
        DataError: none passes the checks, whatever the cap or under the largest one.
    """
    config = context.config
    cap = config.layer_max_kl
    while True:
        limits = LayerLimits(config.layer_coefficient, cap, config.drop_last_layers, pruned=config.search.pruned)
        try:
            return find_layer(bench, limits, found), cap
        except DataError:
            costly = any(one.reason == HARMLESS_KL for one in found.of_family("layer"))
            if not costly or 2 * cap > config.layer_kl_ceiling:
                raise
        cap *= 2
        context.reporter.say(f"no direction of a layer passes the checks; the cap on harmless KL is raised to {cap:g}")


def search_limits(context: SteerContext) -> SearchLimits:
    """The recipe's caps for experts."""
    config = context.config.search
    return SearchLimits(
        coefficients=config.coefficients,
        max_kl=config.max_kl,
        keep_share=config.keep_share,
        keep_least=config.keep_least,
        judged_tokens=config.judged_tokens,
        pruned=config.pruned,
    )


def expert_options(context: SteerContext) -> ExpertOptions:
    """The recipe's choice of experts and controls."""
    config = context.config
    return ExpertOptions(
        threshold=config.search.routing_threshold,
        random_experts=config.controls.random_experts,
        pairs=config.controls.pairs,
        triples=config.controls.triples,
        seed=config.seed,
    )


def _refusal_tokens(context: SteerContext) -> tuple[int, ...]:
    """The recipe's, else those that the model's own refusals of plain requests open with."""
    config, opened = context.config, context.opened
    if config.refusal_tokens is not None:
        return refusal_tokens((), (), override=config.refusal_tokens)
    prompts = context.harmful("train")
    replies = generate(
        opened.model,
        opened.tokenizer,
        prompts,
        max_new_tokens=config.search.judged_tokens,
        batch_size=config.batch_size,
        progress=lambda done, total: context.reporter.step("how the model refuses", done, total),
    )
    verdicts = context.judge(prompts, [reply.text for reply in replies])
    opened_with = [
        (reply.token_ids[0], verdict.label == "refused")
        for reply, verdict in zip(replies, verdicts, strict=True)
        if reply.token_ids
    ]
    return refusal_tokens(
        [token for token, _ in opened_with], [refused for _, refused in opened_with], share=config.refusal_token_share
    )


def _shown(context: SteerContext, token: int) -> str:
    return repr(str(context.opened.tokenizer.decode([token])))


def _strength(context: SteerContext, target: SteeringTarget, directions: Directions, found: Found) -> SteeringCandidate:
    """The multiple of the layer's direction with the least sum of attack success, over-refusal and benign refusal on
    validation prompts; every multiple is kept among the candidates.

    Raises:
        DataError: there is no attack to refuse.
    """
    chosen = found.choice(LAYER)
    assert chosen is not None
    if not context.attacks("validation"):
        raise DataError(
            "there are no attacks on validation goals, so nothing says how strong a hardening must be",
            expected="families in data.attacks_seen, or data.attack_file",
            remedy="name some, or use steer.mode=suppress",
        )
    measure, sums = validator(context), dict[SteeringCandidate, float]()
    attacks = len(context.prompts.pairs("validation"))
    for coefficient in context.config.harden.coefficients:
        # The numbers of the selection are of the ablation and of another multiple added; at that multiple they stay.
        other = replace(way_of(chosen).at(coefficient), kept=True)
        tried = chosen if coefficient == chosen.coefficient else other
        with applied(target, directions, tried, "induce"):
            scores = measure()
        said = f"over-refusal {scores.over_refusal:.0%}, benign refused {scores.benign_refusal:.0%}"
        context.reporter.say(f"times {coefficient:g}: attacks succeed {scores.attack_success:.0%}, {said}")
        row = replace(tried, refused=1 - scores.attack_success, judged=attacks, reason=said)
        sums[row] = scores.attack_success + scores.over_refusal + scores.benign_refusal
    best = min(sums, key=lambda one: sums[one])
    found.add(sums)
    found.choose(LAYER, best)
    return best

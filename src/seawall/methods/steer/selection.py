"""Directions from training prompts and choices from validation prompts, each saved as soon as it is finished."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from seawall.artifacts.audit import AuditFigure
from seawall.artifacts.directions import NAME as DIRECTIONS
from seawall.artifacts.directions import Directions
from seawall.artifacts.steering import NAME as STEERING
from seawall.artifacts.steering import SteeringCandidate, SteeringMode, SteeringResult
from seawall.data.types import Messages
from seawall.errors import DataError
from seawall.evaluation.decision import ValidationScores, decide, objection
from seawall.methods.steer.choose import LAYER, ExpertSearch, SearchOutcome, choose_layer
from seawall.methods.steer.context import SEARCH, SteerContext
from seawall.methods.steer.evaluator import CandidateEvaluator
from seawall.methods.steer.extract import extract
from seawall.methods.steer.figures import ON_SCREENING, ORIGINAL_SCORE
from seawall.methods.steer.interventions import applied, forget_records, intervention_of
from seawall.methods.steer.options import ExpertOptions, LayerLimits, SearchLimits
from seawall.methods.steer.reasons import HARMLESS_KL
from seawall.methods.steer.score import refusal_tokens
from seawall.methods.steer.search import refusal_judge
from seawall.methods.steer.target import TargetModel, encode_prompts
from seawall.models.generate import generate
from seawall.shell.validation import validator


def read_directions(context: SteerContext, scratch: Path) -> Directions:
    """The directions, extracted unless an earlier attempt saved them in `scratch`.

    Raises:
        DataError: the model refuses no prompt, a side has no prompts, or a position lies outside a prompt.
    """
    if (scratch / f"{DIRECTIONS}.json").is_file():
        saved = Directions.load(scratch, fingerprint=context.opened.fingerprint)
        if saved.expert_part == "routed":
            return saved
        # Of an earlier version, whose experts' directions were those of MoE blocks: nothing built on them counts.
        context.reporter.say("the directions of an earlier version are extracted again, and the search begins again")
        shutil.rmtree(scratch / SEARCH, ignore_errors=True)
    config, tokenizer = context.config, context.opened.tokenizer
    harmful, harmless = (
        encode_prompts(tokenizer, prompts) for prompts in (context.harmful("train"), context.harmless("train"))
    )
    target = target_model(context, _refusal_tokens(context))
    tokens = ", ".join(_decoded(context, token) for token in target.refusal_tokens)
    context.reporter.say(f"first tokens of refusals: {tokens}")
    directions = extract(
        target,
        harmful,
        harmless,
        positions=config.positions,
        experts=config.experts,
        progress=lambda count, total: context.reporter.step("directions", count, total),
    )
    directions.save(scratch)
    return directions


def target_model(context: SteerContext, tokens: tuple[int, ...]) -> TargetModel:
    """The recipe's model with the tokens of its refusal score."""
    opened = context.opened
    return TargetModel(opened.model, opened.moe_if_any, opened.fingerprint, tokens, context.config.batch_size)


def search_directions(
    context: SteerContext, target: TargetModel, directions: Directions, scratch: Path
) -> SteeringResult:
    """Every candidate and choice, without conditions; searched unless an earlier attempt saved it in `scratch`.

    Raises:
        DataError: no direction of a layer passes the checks.
    """
    folder = scratch / SEARCH
    if (folder / STEERING).is_file():
        return SteeringResult.load(folder)
    outcome = SearchOutcome()
    prompts = context.harmful("validation")
    evaluator = _evaluator(context, target, directions, prompts)
    figures = {
        **_original_scores(evaluator, ORIGINAL_SCORE["suppress"]),
        "original_harmless_score": evaluator.original_score("harmless"),
    }
    # A layer's direction is selected by its ablation in both modes.
    layer, cap = _choose_layer(context, evaluator, outcome)
    figures |= {"layer_cap": cap, "layer_max_kl": context.config.layer_max_kl}
    context.reporter.say(
        f"layer {layer.layer}, token {layer.position}: the refusal score goes from "
        f"{figures['original_score']:.2f} to {layer.refusal_score:.2f}"
    )
    if context.config.mode == "induce":
        layer = _choose_strength(context, target, directions, outcome)
        prompts = context.attacks("validation")
        evaluator = _evaluator(context, target, directions, prompts, induce=True)
        figures |= _original_scores(evaluator, ORIGINAL_SCORE["induce"])
    if directions.candidates:
        _search_experts(context, evaluator, prompts, layer, outcome)
        figures |= {"search_cost": float(outcome.cost), "search_full_cost": float(outcome.full_cost)}
    forget_records(target.model)
    result = SteeringResult(
        model_fingerprint=target.fingerprint,
        mode=context.config.mode,
        candidates=tuple(outcome.candidates),
        chosen=outcome.chosen,
        figures={name: AuditFigure(value) for name, value in figures.items()},
    )
    result.save(folder)
    return result


def outcome_of(result: SteeringResult) -> SearchOutcome:
    """The candidates and choices of a saved search."""
    return SearchOutcome(candidates=list(result.candidates), chosen=dict(result.chosen))


def search_limits(context: SteerContext) -> SearchLimits:
    """The recipe's limits of the search for experts."""
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


def _evaluator(
    context: SteerContext,
    target: TargetModel,
    directions: Directions,
    prompts: list[Messages],
    *,
    induce: bool = False,
) -> CandidateEvaluator:
    moved, harmless = (
        encode_prompts(context.opened.tokenizer, side) for side in (prompts, context.harmless("validation"))
    )
    mode: SteeringMode = "induce" if induce else "suppress"
    progress = context.reporter.step
    return CandidateEvaluator(target, directions, mode, moved=moved, harmless=harmless, progress=progress)


def _search_experts(
    context: SteerContext,
    evaluator: CandidateEvaluator,
    prompts: list[Messages],
    layer: SteeringCandidate,
    outcome: SearchOutcome,
) -> None:
    limits = search_limits(context)
    judge = refusal_judge(evaluator, context.opened.tokenizer, context.judge, max_new_tokens=limits.judged_tokens)
    judged_prompts = prompts[: context.config.search.judged_prompts]
    ExpertSearch(evaluator, judge, judged_prompts, limits, expert_options(context), outcome).run(layer)


def _original_scores(evaluator: CandidateEvaluator, name: str) -> dict[str, float]:
    """The original model's score on the prompts whose refusal is to be moved, and on the screening prompts alone."""
    return {
        name: evaluator.original_score("moved"),
        f"{name}{ON_SCREENING}": evaluator.original_score("moved", ["screening"]),
    }


def _choose_layer(
    context: SteerContext, evaluator: CandidateEvaluator, outcome: SearchOutcome
) -> tuple[SteeringCandidate, float]:
    """The layer's direction, and its cap on harmless divergence: the recipe's, doubled until a candidate passes.

    Raises:
        DataError: no candidate passes at the largest cap, or for reasons other than the cap.
    """
    config = context.config
    cap = config.layer_max_kl
    while True:
        limits = LayerLimits(config.layer_coefficient, cap, config.drop_last_layers, pruned=config.search.pruned)
        try:
            return choose_layer(evaluator, limits, outcome), cap
        except DataError:
            above_cap = any(candidate.reason == HARMLESS_KL for candidate in outcome.of_family("layer"))
            if not above_cap or 2 * cap > config.layer_kl_ceiling:
                raise
        cap *= 2
        context.reporter.say(f"no direction of a layer passes the checks; the cap on harmless KL is raised to {cap:g}")


def _choose_strength(
    context: SteerContext, target: TargetModel, directions: Directions, outcome: SearchOutcome
) -> SteeringCandidate:
    """The coefficient of the layer's direction by the rule of every choice, on validation prompts.

    Every coefficient becomes a candidate. Where the model without the direction goes first, the one with the least loss
    is studied, and is not kept: no hardening of it is written.

    Raises:
        DataError: there is no attack to refuse.
    """
    chosen = outcome.choice(LAYER)
    assert chosen is not None
    if not context.attacks("validation"):
        raise DataError(
            "the strength of a hardening is chosen on attacks, and there are none on validation goals",
            expected="families in data.attacks_seen, or data.attack_file",
            remedy="name attack families, or use steer.mode=suppress",
        )
    measure, rows, scores = validator(context), list[SteeringCandidate](), list[ValidationScores]()
    attacks = len(context.prompts.pairs("validation"))
    before = measure()
    for coefficient in context.config.harden.coefficients:
        # The selection's measurements are of the ablation and of one coefficient, so only that candidate keeps them.
        unmeasured = replace(intervention_of(chosen).candidate(coefficient), kept=True)
        tried = chosen if coefficient == chosen.coefficient else unmeasured
        with applied(target, directions, tried, "induce"):
            scores.append(measure())
        context.reporter.say(f"times {coefficient:g}: {scores[-1]}")
        problem = objection(scores[-1], before)
        reason = problem or str(scores[-1])
        refused = 1 - scores[-1].attack_success
        rows.append(replace(tried, refused=refused, judged=attacks, kept=not problem, reason=reason))
    labels = [f"{row.coefficient:g}" for row in rows]
    decision = decide(scores, before, context.recipe.repair.early_stop, kind="coefficient", labels=labels)
    context.reporter.say(decision.reason)
    cheapest = min(range(len(rows)), key=lambda index: scores[index].cost)
    best = rows[cheapest if decision.index is None else decision.index]
    outcome.add(rows)
    outcome.choose(LAYER, best)
    return best


def _refusal_tokens(context: SteerContext) -> tuple[int, ...]:
    """The recipe's tokens, or else the first tokens of the model's refusals of plain harmful prompts."""
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
        decoder=context.decoder,
        progress=lambda count, total: context.reporter.step("how the model refuses", count, total),
    )
    context.close_decoders()  # the search generates under hooks, by our loop
    verdicts = context.judge(prompts, [reply.answer for reply in replies])
    first_tokens = [
        (reply.token_ids[0], verdict.label == "refused")
        for reply, verdict in zip(replies, verdicts, strict=True)
        if reply.token_ids
    ]
    return refusal_tokens(
        [token for token, _ in first_tokens],
        [is_refusal for _, is_refusal in first_tokens],
        share=config.refusal_token_share,
    )


def _decoded(context: SteerContext, token: int) -> str:
    return repr(str(context.opened.tokenizer.decode([token])))

"""What RASA works with in addition to the shell's context: kept pairs, retained answers, and the stages' inputs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from seawall.config.repair import RepairConfig
from seawall.data.pairs import refusal_for
from seawall.data.twins import Twin, twins_of
from seawall.data.types import Exchange, Message, Messages, SafetyPair
from seawall.methods.rasa.repair import RepairInputs
from seawall.models.generate import Completion
from seawall.models.replies import resumable_replies
from seawall.shell.context import Context


def stage_inputs(context: Context, **inputs: Any) -> dict[str, Any]:
    """The inputs of a stage: those of every stage, the judge, and `inputs`."""
    return {**context.basis(), "judge": context.recipe.eval.judge.model_dump(mode="json"), **inputs}


def kept_pairs(profile_folder: Path) -> list[SafetyPair]:
    """The pairs that the profile kept, from its `pairs.jsonl`."""
    return [pair for pair, _ in _kept(profile_folder)]


def repair_inputs(context: Context, settings: RepairConfig, scratch: Path, *, count: int | None = None) -> RepairInputs:
    """The training examples of a repair.

    Args:
        context: with a finished profile.
        settings: of the repair.
        scratch: folder of the model's answers, which an interrupted repair resumes from.
        count: number of first pairs to use; None takes all.
    """
    records = list(_kept(context.run.stage("profile")))[:count]
    pairs = [pair for pair, _ in records]
    retain = retained_exchanges(context, scratch / "retain.jsonl") if settings.retain.per_batch else []
    if settings.retain.plain_refusals:
        refusals = {pair.plain: replace(reply, prompt=pair.plain) for pair, reply in records}
        retain += refusals.values()
    twins = _twins(context, settings, pairs)
    plain_teaches = settings.objective == "consistency"
    prompts = [twin.plain if plain_teaches else twin.prompt for of_pair in twins for twin in of_pair]
    distinct = list(dict.fromkeys(prompts))  # attacks share twins
    replies = _answers(context, distinct, scratch / "twin_answers.jsonl", refusals=plain_teaches)
    answer_to = dict(zip(distinct, replies, strict=True))
    positions, teachers = [], [pair.plain if plain_teaches else None for pair in pairs] + [None] * len(retain)
    for of_pair in twins:
        replied = [(twin, answer_to[twin.plain if plain_teaches else twin.prompt]) for twin in of_pair]
        answered = [(twin, exchange) for twin, exchange in replied if exchange is not None]
        positions.append(range(len(retain), len(retain) + len(answered)))
        retain += [Exchange(twin.prompt, answer.response, ended=answer.ended) for twin, answer in answered]
        teachers += [twin.plain if plain_teaches else None for twin, _ in answered]
    targets = [reply for _, reply in records] if plain_teaches else refusal_targets(context, pairs)
    return RepairInputs(pairs, targets, retain, positions, teachers if plain_teaches else ())


def refusal_targets(context: Context, pairs: Sequence[SafetyPair]) -> list[Exchange]:
    """The attacks of the pairs with a target refusal each."""
    return [Exchange(pair.attack, refusal_for(pair.goal, context.prompts.refusals), pair.goal) for pair in pairs]


def _kept(profile_folder: Path) -> Iterator[tuple[SafetyPair, Exchange]]:
    """Every kept pair, with its attack and the model's reply to the plain request."""
    with (profile_folder / "pairs.jsonl").open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if row["dropped"] is None:
                plain, attack = (tuple(Message(**message) for message in row[side]) for side in ("anchor", "attack"))
                ended = row.get("anchor_ended", False)  # profiles of earlier versions do not tell
                reply = Exchange(attack, row["anchor_reply"].strip(), row["goal"], ended=ended)
                yield SafetyPair(row["goal"], plain, attack, row["attack_name"]), reply


def retained_prompts(context: Context) -> list[Messages]:
    """Harmless training prompts, plain and in attacks' wrappings, whose answers a repair must keep."""
    return [*[item.prompt for item in context.prompts.retain], *context.prompts.retain_wrapped]


def retained_exchanges(context: Context, path: Path) -> list[Exchange]:
    """The current model's answers to these prompts, resumable in a file; refusals and empty replies are left out."""
    return [exchange for exchange in _answers(context, retained_prompts(context), path) if exchange is not None]


def _twins(context: Context, settings: RepairConfig, pairs: Sequence[SafetyPair]) -> list[tuple[Twin, ...]]:
    """The harmless twins of each attack, from training prompts."""
    prompts = context.prompts
    benign = [item.text for item in prompts.benign.train if item.imperative is not False]
    kinds = [[item.text for item in prompts.borderline.train], benign]
    return twins_of(pairs, kinds, per_pair=settings.retain.twins * settings.retain.twin_pool, seed=settings.seed)


def _answers(
    context: Context, prompts: Sequence[Messages], path: Path, *, refusals: bool = False
) -> list[Exchange | None]:
    """The model's replies, resumable in a file; None for an empty reply, noise, or (without `refusals`) a refusal."""
    if not prompts:
        return []
    config = context.recipe.eval
    replies: list[Completion] = resumable_replies(
        context.opened.model,
        context.opened.tokenizer,
        prompts,
        path,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        decoder=context.decoder,
        progress=lambda count, total: context.reporter.step("answers to retain", count, total),
    )
    verdicts = context.judge(prompts, [reply.answer for reply in replies])
    accepted = ("complied", "evades", "refused") if refusals else ("complied", "evades")
    return [
        Exchange(prompt, reply.answer.strip(), ended=reply.ended)
        if verdict.outcome in accepted and reply.answer.strip()
        else None
        for prompt, reply, verdict in zip(prompts, replies, verdicts, strict=True)
    ]

"""The extraction of a gene, stage by stage."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.artifacts.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, GenePoint, save_adapter
from seawall.artifacts.evaluation import Rate
from seawall.artifacts.gene import Gene, GeneExperts, GeneLayer, GeneRecovery
from seawall.data.splits import SplitName
from seawall.data.types import Exchange
from seawall.errors import DataError
from seawall.evaluation.metrics import rate_with_interval
from seawall.methods.gene.context import REPLIES, GeneContext
from seawall.methods.gene.distil import Distilled, compliance, degrade, distil
from seawall.methods.gene.experts import describe_experts, expert_recovery
from seawall.methods.gene.lessons import AlignedReply, Lesson, Taught, read_replies, teach, write_replies
from seawall.methods.gene.methods import encode_shots, pad_id
from seawall.methods.gene.select import contrast, layer_outputs, select_layers
from seawall.methods.gene.task_model import vocabulary_hash
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.generate import generate
from seawall.models.lora.attach import AttachedAdapter, attach_adapter, merged
from seawall.runs.files import write_metrics

_DEGRADING, _UPDATES = "degrading", "degrade.jsonl"
_DEGRADED_SCALING = 2.0


def _replies(context: GeneContext, scratch: Path) -> None:
    """The aligned model's own replies; of harmful requests those alone that it refuses."""
    context.reporter.stage("The aligned model's replies")
    model, tokenizer = context.checkpoint.load()
    config = context.config.extract
    found: list[AlignedReply] = []
    parts: tuple[tuple[SplitName, bool, int], ...] = (
        ("train", True, config.harmful),
        ("train", False, config.benign),
        ("validation", True, config.held_out),
        ("validation", False, config.held_out),
    )
    for part, harmful, most in parts:
        prompts = context.asked(part, harmful=harmful, most=most)
        replies = generate(
            model,
            tokenizer,
            prompts,
            max_new_tokens=config.max_new_tokens,
            batch_size=context.config.batch_size,
            progress=context.step(f"{part}, {'harmful' if harmful else 'harmless'}"),
        )
        verdicts = context.judge(prompts, [one.text for one in replies])
        wanted = "refused" if harmful else "complied"
        kept = [
            AlignedReply(part, harmful, Exchange(prompt, reply.text.strip(), prompt[-1].content, reply.ended))
            for prompt, reply, verdict in zip(prompts, replies, verdicts, strict=True)
            if verdict.label == wanted and reply.text.strip()
        ]
        if not kept:
            raise DataError(
                f"the aligned model gives no {'refusal of a harmful' if harmful else 'answer to a harmless'} request",
                got=f"0 of {len(prompts)} {part} requests",
                expected="a model that refuses harm and answers the rest",
                remedy="name the aligned model as model.id",
            )
        found += kept
    write_replies(scratch / "replies.jsonl", found)


def _degrading(context: GeneContext, scratch: Path) -> Path:
    """The adapter that degrades the aligned model. It is there while a gene is made, and never in a finished stage."""
    folder = scratch / _DEGRADING
    if (scratch / _UPDATES).is_file() and all((folder / name).is_file() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)):
        return folder
    context.reporter.stage("Degrading: a short LoRA on harmless replies and bare openings of compliance")
    model, tokenizer = context.checkpoint.load()
    config = context.config.degrade
    benign = [one.exchange for one in _kept(context, "train", harmful=False)][: config.benign]
    goals = context.asked("train", harmful=True, most=config.harmful)
    attached = attach_adapter(
        model, context.points, rank=config.rank, scaling=_DEGRADED_SCALING, seed=context.config.seed
    )
    lessons = encode_shots(tokenizer, compliance(goals), benign)
    total = config.epochs * -(-len(lessons) // config.batch_size)
    rows: list[Mapping[str, float]] = []

    def log(row: Mapping[str, float]) -> None:
        rows.append(row)
        context.reporter.step("updates", len(rows), total)

    degrade(attached, lessons, pad_id(tokenizer), config, seed=context.config.seed, log=log)
    folder.mkdir(exist_ok=True)
    save_adapter(folder, attached.points, attached.factors(), _DEGRADED_SCALING)
    write_metrics(scratch / _UPDATES, rows)
    return folder


@dataclass(frozen=True, eq=False)
class _Aligned:
    """What is needed of the aligned model when it is gone."""

    train: Taught
    held_out: Taught
    outputs: list[Any]


def _gene(context: GeneContext, scratch: Path) -> None:
    config, reporter = context.config, context.reporter
    degrading = _degrading(context, scratch) if config.degraded is None else None
    reporter.stage("The aligned model's predictions")
    model, tokenizer = context.checkpoint.load()
    known = _learn(context, model, tokenizer)
    reporter.stage("Layer scores")
    if degrading is not None:
        model = merged(model, degrading)
    else:
        assert context.degraded is not None
        del model
        model, _ = context.degraded.load()
    degraded = model_fingerprint(model)
    lessons = known.held_out.lessons
    outputs = layer_outputs(model, lessons, pad_id(tokenizer), batch_size=config.batch_size)
    layers = contrast(known.outputs, outputs, [one.harmful for one in lessons])
    points = _chosen(context, layers)
    reporter.stage(f"Distilling into {len(points)} weight matrices, rank {config.rank}")
    scaling = config.alpha / config.rank
    attached = attach_adapter(model, points, rank=config.rank, scaling=scaling, seed=config.seed)
    distilled = _distilled(context, attached, known, scratch)
    experts = _experts(context, attached, known, distilled)
    _save(context, attached, _Measured(degraded, layers, distilled, *experts), scratch, tokenizer)
    if degrading is not None:
        shutil.rmtree(degrading)


def _chosen(context: GeneContext, layers: Sequence[GeneLayer]) -> dict[str, GenePoint]:
    """The adapter points in the layers that the recipe asks for."""
    config = context.config.extract
    held = sorted({point.layer for point in context.points.values()})
    kept = select_layers(layers, held, config.keep, config.fraction, seed=context.config.seed)
    return {name: point for name, point in context.points.items() if point.layer in kept}


def _learn(context: GeneContext, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> _Aligned:
    size, pad = context.config.batch_size, pad_id(tokenizer)
    sides: dict[SplitName, list[Lesson]] = {}
    parts: tuple[SplitName, ...] = ("train", "validation")
    for part in parts:
        harmful, benign = ([one.exchange for one in _kept(context, part, harmful=kind)] for kind in (True, False))
        sides[part] = encode_shots(tokenizer, harmful, benign)
    return _Aligned(
        teach(model, sides["train"], pad, batch_size=size),
        teach(model, sides["validation"], pad, batch_size=size),
        layer_outputs(model, sides["validation"], pad, batch_size=size),
    )


def _distilled(context: GeneContext, attached: AttachedAdapter, known: _Aligned, scratch: Path) -> Distilled:
    config = context.config.extract
    total = config.epochs * -(-len(known.train.lessons) // config.batch_size)
    rows: list[Mapping[str, float]] = []

    def log(row: Mapping[str, float]) -> None:
        rows.append(row)
        context.reporter.step("updates", len(rows), total)

    distilled = distil(attached, known.train, known.held_out, config, seed=context.config.seed, log=log)
    write_metrics(scratch / "metrics.jsonl", rows)
    return distilled


def _experts(
    context: GeneContext, attached: AttachedAdapter, known: _Aligned, distilled: Distilled
) -> tuple[tuple[GeneExperts, ...], tuple[GeneRecovery, ...]]:
    """What the gene does to each expert, and the held-out divergence with some of them alone."""
    config = context.config
    if distilled.use is None:
        return (), ()
    found = describe_experts(attached.points, attached.factors(), config.alpha / config.rank, distilled.use)
    shares = config.extract.expert_shares
    if shares:
        context.reporter.stage("The gene with some experts alone")
    size = config.extract.batch_size
    return found, expert_recovery(attached, known.held_out, found, shares, batch_size=size, seed=config.seed)


@dataclass(frozen=True, eq=False)
class _Measured:
    """What is known of a gene beside its factors."""

    degraded: str
    layers: tuple[GeneLayer, ...]
    distilled: Distilled
    experts: tuple[GeneExperts, ...]
    recovery: tuple[GeneRecovery, ...]


def _save(
    context: GeneContext, attached: AttachedAdapter, known: _Measured, scratch: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    held = {point.layer for point in attached.points.values()}
    refusals = {}
    if context.config.extract.judged:
        context.reporter.stage("Refusals without and with the gene")
        with attached.disabled():
            refusals["degraded"] = _refused(context, attached.model, tokenizer)
        refusals["restored"] = _refused(context, attached.model, tokenizer)
    Gene(
        family=str(attached.model.config.model_type),
        tokenizer=vocabulary_hash(tokenizer),
        aligned=context.checkpoint.fingerprint,
        degraded=known.degraded,
        points=attached.points,
        factors=attached.factors(),
        scaling=context.config.alpha / context.config.rank,
        layers=tuple(replace(one, selected=one.layer in held) for one in known.layers),
        experts=known.experts,
        recovery=known.recovery,
        curve=known.distilled.curve,
        refusals=refusals,
    ).save(scratch)


def _refused(context: GeneContext, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Rate:
    prompts = [one.exchange.prompt for one in _kept(context, "validation", harmful=True)]
    prompts = prompts[: context.config.extract.judged]
    replies = generate(
        model,
        tokenizer,
        prompts,
        max_new_tokens=context.config.extract.max_new_tokens,
        batch_size=context.config.batch_size,
        progress=context.step("asking"),
    )
    labels = [one.label for one in context.judge(prompts, [reply.text for reply in replies])]
    return rate_with_interval(
        labels, [one[-1].content for one in prompts], "refused", seed=context.config.seed, cautious=True
    )


def _kept(context: GeneContext, part: SplitName, *, harmful: bool) -> list[AlignedReply]:
    found = read_replies(context.run.stage(REPLIES) / "replies.jsonl")
    return [one for one in found if one.part == part and one.harmful is harmful]

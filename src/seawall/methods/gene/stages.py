"""The extraction of a gene: SafeGene (arXiv 2606.06519), steps (a) and (b), as two stages of a run folder.

Aligned model, degraded model and adapter are never in memory at once: the aligned model's outputs are cached first.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.artifacts.adapter import GenePoint
from seawall.artifacts.evaluation import Rate
from seawall.artifacts.gene import Gene, GeneExperts, GeneLayer, GeneRecovery
from seawall.data.prompts import BORDERLINE_REQUEST, RequestKind
from seawall.data.splits import SplitName
from seawall.data.types import Exchange, Messages, VerdictLabel
from seawall.errors import DataError
from seawall.evaluation.metrics import rate_with_interval
from seawall.methods.gene.context import REPLIES, GeneContext
from seawall.methods.gene.degrade import degrading_adapter
from seawall.methods.gene.distil import Distillation, distil
from seawall.methods.gene.examples import TeacherTargets, distillation_examples, pad_id, teacher_predictions
from seawall.methods.gene.experts import describe_experts, expert_recovery
from seawall.methods.gene.launched import AdapterShape, attached_everywhere, disabled_everywhere
from seawall.methods.gene.replies import TeacherReply, write_replies
from seawall.methods.gene.select import contrast, layer_outputs, select_layers
from seawall.methods.gene.shots import limiting_requests
from seawall.methods.gene.task_model import vocabulary_hash
from seawall.models.files.fingerprint import model_fingerprint
from seawall.models.generate import generate
from seawall.models.lora.attach import AttachedAdapter, merged
from seawall.models.replicas import copy_weights
from seawall.runs.files import read_json, write_json, write_metrics
from seawall.train.loop import Row

_EXPECTED: Mapping[RequestKind, tuple[VerdictLabel, ...]] = {
    "harmful": ("refused",),
    "benign": ("complied",),
    BORDERLINE_REQUEST: ("refused", "complied"),
}

_OVER_REFUSAL = "over_refusal.json"


def collect_replies(context: GeneContext, scratch: Path) -> None:
    """Stage `gene-replies`: the aligned model's refusals of harmful requests and answers to harmless ones."""
    context.reporter.stage("The aligned model's replies")
    model, tokenizer = context.load_aligned()
    config = context.config.extract
    sides: tuple[tuple[SplitName, RequestKind, int], ...] = (
        ("train", "harmful", config.harmful),
        ("train", "benign", config.benign),
        ("train", BORDERLINE_REQUEST, config.borderline),
        ("validation", "harmful", config.held_out),
        ("validation", "benign", config.held_out),
    )
    replies: list[TeacherReply] = []
    for part, kind, limit in sides:
        if limit:
            replies += _replies(context, model, tokenizer, part, kind, limit=limit)
    if config.borderline:
        write_json(scratch / _OVER_REFUSAL, asdict(_over_refusal(context, model, tokenizer)))
    context.close_decoders()  # the training needs their memory
    write_replies(scratch / "replies.jsonl", replies)


def distil_gene(context: GeneContext, scratch: Path) -> None:
    """Stage `gene`: the gene's factors, layer scores, expert scores and held-out measurements."""
    config, reporter = context.config, context.reporter
    # Step (a), the degraded model: named by the recipe, or the aligned model with a short LoRA.
    degrading = degrading_adapter(context, scratch) if config.degraded is None else None
    reporter.stage("The aligned model's predictions")
    model, tokenizer = context.load_aligned()
    teacher = _teacher_outputs(context, model, tokenizer)
    # Step (b), data-aware layer selection: s_l = E_harmful ||h_l(aligned) - h_l(degraded)|| - E_benign ||...||.
    reporter.stage("Layer scores")
    if degrading is not None:
        model = merged(model, degrading)
        copy_weights(model, list(context.points))
    else:
        del model
        model, _ = context.load_degraded()
    degraded = model_fingerprint(model)
    layers = _layer_scores(context, model, tokenizer, teacher)
    points = _selected_points(context, layers)
    # Step (a), the aligned-degraded discrepancy: LoRA trained to KL(aligned || degraded + gene) on response tokens.
    reporter.stage(f"Distilling into {len(points)} weight matrices, rank {config.rank}")
    shape = AdapterShape(points, config.rank, config.alpha / config.rank, config.seed)
    with attached_everywhere(model, shape) as attached:
        distillation = _distil(context, attached, teacher, scratch)
        # Beyond the paper: which experts of a stack carry the gene.
        experts, recovery = _expert_scores(context, attached, teacher, distillation)
        refusals = _refusal_rates(context, attached, tokenizer)
    selected = {point.layer for point in attached.points.values()}
    Gene(
        family=str(attached.model.config.model_type),
        tokenizer=vocabulary_hash(tokenizer),
        aligned=context.checkpoint.fingerprint,
        degraded=degraded,
        points=attached.points,
        factors=attached.factors(),
        scaling=shape.scaling,
        layers=tuple(replace(layer, selected=layer.layer in selected) for layer in layers),
        experts=experts,
        recovery=recovery,
        curve=distillation.curve,
        refusals=refusals,
    ).save(scratch)
    if degrading is not None:
        shutil.rmtree(degrading)


def _replies(
    context: GeneContext,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    part: SplitName,
    kind: RequestKind,
    *,
    limit: int,
) -> list[TeacherReply]:
    """Replies with the expected verdict: harmful requests refused, benign ones answered, borderline ones either."""
    prompts = context.requests(part, kind, limit=limit)
    completions = generate(
        model,
        tokenizer,
        prompts,
        max_new_tokens=context.config.extract.max_new_tokens,
        batch_size=context.config.batch_size,
        decoder=context.decoder,
        progress=context.progress(f"{part}, {kind}"),
    )
    verdicts = context.judge(prompts, [completion.answer for completion in completions])
    replies = [
        TeacherReply(part, kind, Exchange(prompt, completion.answer.strip(), prompt[-1].content, completion.ended))
        for prompt, completion, verdict in zip(prompts, completions, verdicts, strict=True)
        if verdict.label in _EXPECTED[kind] and completion.answer.strip()
    ]
    if not replies:
        raise DataError(
            f"the aligned model {'refuses' if kind == 'harmful' else 'answers'} no {kind} request",
            got=f"0 of {len(prompts)} {part} requests",
            expected="a model that refuses harmful requests and answers harmless ones",
            remedy="name the aligned model as model.id",
        )
    return replies


@dataclass(frozen=True, eq=False)
class _TeacherOutputs:
    """Outputs of the aligned model, cached before it is freed; `hidden` is of the held-out examples."""

    train: TeacherTargets
    held_out: TeacherTargets
    hidden: list[Tensor]


def _teacher_outputs(
    context: GeneContext, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> _TeacherOutputs:
    size, pad = context.config.batch_size, pad_id(tokenizer)
    parts: tuple[SplitName, ...] = ("train", "validation")
    train, held_out = (
        distillation_examples(
            tokenizer, context.exchanges(part, "harmful"), context.exchanges(part, "benign", BORDERLINE_REQUEST)
        )
        for part in parts
    )
    return _TeacherOutputs(
        teacher_predictions(model, train, pad, batch_size=size),
        teacher_predictions(model, held_out, pad, batch_size=size),
        layer_outputs(model, held_out, pad, batch_size=size),
    )


def _layer_scores(
    context: GeneContext, degraded: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, teacher: _TeacherOutputs
) -> tuple[GeneLayer, ...]:
    examples = teacher.held_out.examples
    hidden = layer_outputs(degraded, examples, pad_id(tokenizer), batch_size=context.config.batch_size)
    return contrast(teacher.hidden, hidden, [example.harmful for example in examples])


def _selected_points(context: GeneContext, layers: Sequence[GeneLayer]) -> dict[str, GenePoint]:
    """The adapter points in the decoder layers that the recipe keeps."""
    config = context.config.extract
    candidates = sorted({point.layer for point in context.points.values()})
    selected = select_layers(layers, candidates, config.keep, config.fraction, seed=context.config.seed)
    return {name: point for name, point in context.points.items() if point.layer in selected}


def _distil(context: GeneContext, attached: AttachedAdapter, teacher: _TeacherOutputs, scratch: Path) -> Distillation:
    config = context.config.extract
    total = config.epochs * -(-len(teacher.train.examples) // config.batch_size)
    rows: list[Row] = []

    def log(row: Row) -> None:
        rows.append(row)
        context.reporter.step("updates", len(rows), total)

    distillation = distil(attached, teacher.train, teacher.held_out, config, seed=context.config.seed, log=log)
    write_metrics(scratch / "metrics.jsonl", rows)
    return distillation


def _expert_scores(
    context: GeneContext, attached: AttachedAdapter, teacher: _TeacherOutputs, distillation: Distillation
) -> tuple[tuple[GeneExperts, ...], tuple[GeneRecovery, ...]]:
    """The gene's effect on each expert, and the held-out divergence with a share of the experts alone."""
    config = context.config
    if distillation.use is None:
        return (), ()
    experts = describe_experts(attached.points, attached.factors(), config.alpha / config.rank, distillation.use)
    shares = config.extract.expert_shares
    if shares:
        context.reporter.stage("The gene on a share of the experts")
    size = config.extract.batch_size
    return experts, expert_recovery(attached, teacher.held_out, experts, shares, batch_size=size, seed=config.seed)


def _refusal_rates(
    context: GeneContext, attached: AttachedAdapter, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Rate]:
    """Refusal rate of the degraded model on held-out harmful requests, without and with the gene, unless that is off.

    With borderline requests also that of the aligned model on those by which a graft may be limited.
    """
    path = context.run.stage(REPLIES) / _OVER_REFUSAL
    aligned = {"aligned": Rate(**read_json(path))} if path.is_file() else {}
    if not context.config.extract.judged:
        return aligned
    context.reporter.stage("Refusals without and with the gene")
    with disabled_everywhere(attached):
        degraded = _refusal_rate(context, attached.model, tokenizer)
    return {"degraded": degraded, "restored": _refusal_rate(context, attached.model, tokenizer), **aligned}


def _refusal_rate(context: GeneContext, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Rate:
    prompts = [exchange.prompt for exchange in context.exchanges("validation", "harmful")]
    tokens = context.config.extract.max_new_tokens
    return _refused(context, model, tokenizer, prompts[: context.config.extract.judged], tokens)


def _over_refusal(context: GeneContext, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Rate:
    """The aligned model's refusals of the requests by which a graft may be limited, at a graft's reply length."""
    prompts = limiting_requests(context.prompts)
    rate = _refused(context, model, tokenizer, prompts, context.config.graft.reply_tokens)
    if rate.rate is not None:
        context.reporter.say(
            f"of {len(prompts)} borderline validation requests it refuses {rate.rate:.0%}; "
            f"gene.graft.max_over_refusal={rate.rate:.2f} holds a graft to that"
        )
    return rate


def _refused(
    context: GeneContext,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    tokens: int,
) -> Rate:
    config = context.config
    completions = generate(
        model,
        tokenizer,
        prompts,
        max_new_tokens=tokens,
        batch_size=config.batch_size,
        progress=context.progress("replies"),
    )
    outcomes = [
        verdict.outcome for verdict in context.judge(prompts, [completion.answer for completion in completions])
    ]
    goals = [prompt[-1].content for prompt in prompts]
    return rate_with_interval(outcomes, goals, "refused")

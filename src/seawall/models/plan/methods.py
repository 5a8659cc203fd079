"""The verbs beside the main job as stages: steer, gene extract, gene graft, tune, landscape.

Every reply is taken to reach its limit. Where the amount of work follows from a measurement, the docstring gives what
is assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from seawall.config.gene import GeneConfig
from seawall.models.plan.audit import audit_stages
from seawall.models.plan.engines import reply_moments
from seawall.models.plan.memory import teacher_bytes
from seawall.models.plan.request import SAMPLE_BYTES, Request
from seawall.models.plan.shapes import ModelShapes
from seawall.models.plan.stages import Decoding, Moment, Stage, Work, decoding_moments, generation
from seawall.models.plan.training import MemorySettings, Training, training_moments
from seawall.models.plan.verbs import RASA

CONDITIONS = 12
"""Assumed number of conditions, each of which asks the held-out prompts once."""
STEER_EXPERTS_PER_LAYER = 2
"""Assumed number of experts per MoE layer above the routing threshold of the steering search."""


def steer_stages(request: Request) -> tuple[Stage, ...]:
    """`seawall steer`: directions, the search, and the conditions on held-out prompts.

    Assumed: `STEER_EXPERTS_PER_LAYER` candidates per MoE layer and as many controls, every coefficient on the screening
    prompts, and `CONDITIONS` conditions.
    """
    config, sizes, shapes = request.recipe.steer, request.sizes, request.shapes
    moe, limit = shapes.moe, request.recipe.eval.max_new_tokens
    batch = Decoding(config.batch_size, sizes.longest_prompt, limit, ("steer.batch_size",))
    candidates = shapes.layers * len(config.positions)
    if moe is not None and config.experts:
        candidates += 2 * moe.layers * STEER_EXPERTS_PER_LAYER * len(config.search.coefficients)
    judged = max(config.search.keep_least, round(config.search.keep_share * candidates)) * config.search.judged_prompts
    search = Work(
        forward=(2 * config.train_prompts + candidates * config.validation_prompts) * sizes.prompt_tokens,
        generated=judged * config.search.judged_tokens,
    )
    held_out = min(config.test_prompts or sizes.test_goals, sizes.test_goals) * 3
    measured = generation(CONDITIONS * held_out, batch, sizes.prompt_tokens)
    inputs = 2 * config.validation_prompts * sizes.longest_prompt * shapes.width * shapes.element_bytes * shapes.layers
    moments = decoding_moments(shapes, batch, {"recorded layer inputs": inputs}, context=request.context)
    return (
        Stage("search", (*moments, *_engine_moments(request, batch)), search),
        Stage(
            "held-out",
            decoding_moments(shapes, batch, {}, context=request.context),
            measured,
            disk={"samples": SAMPLE_BYTES * measured.generated},
        ),
    )


def _engine_moments(request: Request, batch: Decoding) -> list[Moment]:
    """The refusals whose first tokens are taken, where another engine than our loop writes them."""
    engine = request.recipe.engine
    return [] if engine.kind == "transformers" else reply_moments(request, engine, batch, {})


def extract_stages(request: Request) -> tuple[Stage, ...]:
    """`seawall gene extract`: replies, the degrading LoRA, the teacher's predictions, the distillation."""
    gene, sizes, shapes = request.recipe.gene, request.sizes, request.shapes
    config, degrade = gene.extract, gene.degrade
    harmless = max(1, sizes.retained)
    examples = min(config.harmful, sizes.train_goals) + min(config.benign, harmless) + min(config.borderline, harmless)
    held_out = 2 * config.held_out
    batch = Decoding(gene.batch_size, sizes.longest_prompt, config.max_new_tokens, ("gene.batch_size",))
    sequence = sizes.prompt_tokens + config.max_new_tokens
    replies = generation(examples + held_out, batch, sizes.prompt_tokens)
    degrading = _adapter(request, gene, rows=degrade.batch_size, rank=degrade.rank, setting="gene.degrade.batch_size")
    distilled = _adapter(request, gene, rows=config.batch_size, rank=gene.rank, setting="gene.extract.batch_size")
    work = Work(
        trained=(degrade.epochs * (degrade.harmful + degrade.benign) + config.epochs * examples) * sequence,
        forward=(examples + (1 + config.epochs) * held_out + 2 * examples) * sequence,
        updates=config.epochs * -(-examples // config.batch_size),
        updated=distilled.parameters,
    )
    judged = generation(2 * config.judged, batch, sizes.prompt_tokens)
    trainings = (degrading, distilled) if gene.degraded is None else (distilled,)
    plain = MemorySettings()
    moments = [m for item in trainings for m in training_moments(shapes, item, plain, context=request.context)]
    predictions = teacher_bytes(
        shapes, hidden_tokens=0, predicted_tokens=(examples + held_out) * config.max_new_tokens, routed_tokens=0
    )
    return (
        Stage(
            "gene-replies",
            tuple(reply_moments(request, request.recipe.engine, batch, {})),
            replies,
            disk={"replies": SAMPLE_BYTES * replies.generated},
        ),
        Stage(
            "gene",
            tuple(moments),
            work + judged,
            host={"teacher outputs": predictions},
            disk={"gene": 4 * distilled.parameters},
        ),
    )


def graft_stages(request: Request) -> tuple[Stage, ...]:
    """`seawall gene graft`: tuning of the coefficients, the merged checkpoint, and its verification in float32."""
    gene, sizes, shapes = request.recipe.gene, request.sizes, request.shapes
    graft = gene.graft
    rows = graft.batch_size + graft.batch_size // 2
    tuned = _adapter(request, gene, rows=rows, rank=gene.rank, setting="gene.graft.batch_size")
    moments = training_moments(shapes, tuned, MemorySettings(), context=request.context)
    sequence = sizes.prompt_tokens + sizes.response_tokens
    work = Work(trained=graft.steps * rows * sequence, updates=graft.steps, updated=tuned.parameters)
    exact = replace(shapes, element_bytes=4)
    verified = {"weights": exact.weights, "library context": request.context}
    return (
        Stage("graft", moments, work),
        Stage(
            "merged",
            (Moment("verification in float32", verified, ("gene.graft.verify",)),) if graft.verify else moments[:1],
            disk={
                "checkpoint": shapes.weights,
                "original values": shapes.weights if graft.keep_originals else 0,
            },
        ),
    )


def _adapter(request: Request, gene: GeneConfig, *, rows: int, rank: int, setting: str) -> Training:
    """The training of a LoRA adapter at the gene's points; PEFT merges the updates of expert stacks in every pass."""
    shapes, sizes = request.shapes, request.sizes
    targets = None if gene.targets is None else tuple(name.rpartition(".")[2] for name in gene.targets)
    parameters = shapes.low_rank(rank, targets)
    stacks = shapes.stacked if _adapts_stacks(targets) else 0
    return Training(
        parameters=parameters,
        merged=stacks,
        largest=parameters // shapes.layers,
        rows=rows,
        length=sizes.longest_prompt + sizes.response_tokens,
        positions=sizes.response_tokens + 1,
        layers=shapes.layers,
        adapters=adapter_elements(shapes, targets),
        settings=(setting, "gene.targets"),
    )


def _adapts_stacks(targets: tuple[str, ...] | None) -> bool:
    return targets is None or any(name in ("gate_up_proj", "down_proj") for name in targets)


def adapter_elements(shapes: ModelShapes, targets: tuple[str, ...] | None, *, dropout: bool = False) -> int:
    """Elements per token and layer that adapters save: their inputs, shared by q, k and v, and by gate and up.

    With dropout each matrix has an input of its own.
    """
    groups = (
        (shapes.width, ("q_proj", "k_proj", "v_proj")),
        (shapes.query, ("o_proj",)),
        (shapes.width, ("gate_proj", "up_proj", "gate_up_proj")),
        (shapes.feed_forward if shapes.moe is None else 0, ("down_proj",)),
    )
    total = 0
    for size, names in groups:
        adapted = len(names) if targets is None else len(set(names) & set(targets))
        total += size * (adapted if dropout else min(adapted, 1))
    return total


def tune_stages(request: Request) -> tuple[Stage, ...]:
    """`seawall tune`: one LoRA training per method and seed, and the evaluations."""
    tune, sizes, shapes = request.recipe.tune, request.sizes, request.shapes
    lora, config = tune.lora, request.recipe.eval
    targets = (*lora.target_modules, *(name.rpartition(".")[2] for name in lora.target_parameters))
    parameters = shapes.low_rank(lora.r, targets)
    rows = min(tune.task.train_rows or sizes.task_rows, sizes.task_rows) or 1
    length = min(tune.max_length, sizes.longest_prompt + sizes.response_tokens)
    training = Training(
        parameters=parameters,
        merged=shapes.stacked if lora.target_parameters else 0,
        largest=max(1, parameters // shapes.layers),
        rows=tune.batch_size,
        length=length,
        positions=length,
        layers=shapes.layers,
        adapters=adapter_elements(shapes, targets, dropout=lora.dropout > 0),
        settings=("tune.batch_size", "tune.gradient_checkpointing"),
    )
    memory = MemorySettings(gradient_checkpointing=tune.gradient_checkpointing)
    trainings = len(tune.seeds) * sum(method != "safelora" for method in tune.methods)
    updates = -(-round(tune.epochs * rows) // (tune.batch_size * tune.accumulation))
    mean = min(tune.max_length, sizes.prompt_tokens + sizes.response_tokens)
    work = Work(trained=round(trainings * tune.epochs * rows * mean), updates=trainings * updates, updated=parameters)
    batch = Decoding(config.forward_rows, sizes.longest_prompt, config.longest, ("eval.batch_size",))
    families = sizes.seen_families + sizes.unseen_families if tune.attacks else 0
    prompts = min(tune.test_prompts or sizes.test_goals, sizes.test_goals) * (3 + families) if tune.evaluate else 0
    evaluations = 1 + len(tune.seeds) * len(tune.methods)
    measured = generation(evaluations * prompts, batch, sizes.prompt_tokens)
    return (
        Stage(
            "training",
            training_moments(shapes, training, memory, context=request.context),
            work,
            disk={"adapters": 4 * parameters * trainings, "checkpoint for resuming": 12 * parameters},
        ),
        Stage(
            "evaluation",
            decoding_moments(shapes, batch, {}, context=request.context),
            measured,
            disk={"samples": SAMPLE_BYTES * measured.generated},
        ),
    )


def landscape_stages(request: Request) -> tuple[Stage, ...]:
    """`seawall landscape`: the held-out prompts at every point; `dtype: auto` moves the weights in float32."""
    recipe, sizes = request.recipe, request.sizes
    config = recipe.landscape
    bytes_of_weight = 4 if recipe.model.dtype == "auto" else request.shapes.element_bytes
    shapes = replace(request.shapes, element_bytes=bytes_of_weight)
    directions = 1 + config.random_directions + (config.tuned is not None or config.adapter is not None)
    points = 1 + directions * (len(config.amounts) - 1) + len(config.plane_amounts) ** 2
    batch = Decoding(recipe.eval.forward_rows, sizes.longest_prompt, recipe.eval.max_new_tokens, ("eval.batch_size",))
    prompts = min(config.test_prompts or sizes.test_goals, sizes.test_goals) + 2 * (config.harmless_prompts or 0)
    work = generation(points * prompts, batch, sizes.prompt_tokens)
    return (
        Stage(
            "landscape",
            decoding_moments(shapes, batch, {}, context=request.context),
            work,
            disk={"samples": SAMPLE_BYTES * work.generated},
        ),
    )


VERBS: dict[str, Callable[[Request], tuple[Stage, ...]]] = {
    **RASA,
    "audit": audit_stages,
    "steer": steer_stages,
    "gene extract": extract_stages,
    "gene graft": graft_stages,
    "tune": tune_stages,
    "landscape": landscape_stages,
}
"""Every verb with its stages; the values of `seawall plan --verb`."""

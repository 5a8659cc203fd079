"""The repair as a stage: its two trainings, the validations between rounds, and what is kept of the original model."""

from __future__ import annotations

from seawall.config.engine import TransformersEngine
from seawall.config.recipe import Recipe
from seawall.models.files.inspect import MoESummary
from seawall.models.moe.module_copies import no_shared_experts
from seawall.models.plan.engines import reply_moments
from seawall.models.plan.memory import MASTER_BYTES, optimizer_bytes, teacher_bytes
from seawall.models.plan.request import SAMPLE_BYTES, Request
from seawall.models.plan.shapes import require_moe
from seawall.models.plan.stages import Decoding, Stage, Work, generation
from seawall.models.plan.training import Training, offloaded_bytes, trained_terms, training_moments

MEMORY_KEYS = ("repair.micro_batch_size", "repair.gradient_checkpointing", "repair.optimizer")
"""Settings that make the repair smaller, from the one to change first."""


def repair_stages(request: Request) -> tuple[Stage, ...]:
    """Rounds of an expert step and a router step, each followed by a validation (RASA, sections 3.3 and 3.4)."""
    moe = require_moe(request.shapes, "repair")
    recipe, sizes, memory, shapes = request.recipe, request.sizes, request.memory, request.shapes
    steps = repair_trainings(request, moe)
    moments = [moment for step in steps for moment in training_moments(shapes, step, memory, context=request.context)]
    batch = Decoding(recipe.eval.forward_rows, sizes.longest_prompt, recipe.eval.max_new_tokens, ("eval.batch_size",))
    copies = trained_terms(steps[0], memory.optimizer)
    # A server ends before the training; the validations between rounds are our loop's then.
    loop = TransformersEngine()
    moments += reply_moments(request, recipe.engine, batch, {})
    moments += reply_moments(request, loop if recipe.engine.kind == "vllm" else recipe.engine, batch, copies)
    replies = generation(_replies(request), batch, sizes.prompt_tokens)
    trained = steps[0].parameters + steps[0].idle
    state = optimizer_bytes(trained, memory.optimizer) or 2 * MASTER_BYTES * trained
    slices = shapes.element_bytes * trained
    return (
        Stage(
            "repair",
            tuple(moments),
            replies + repair_work(request),
            host={
                "teacher outputs": _teacher_outputs(request, moe),
                "changed slices": 2 * slices,
                "offloaded optimizer": offloaded_bytes(steps[0], memory.optimizer),
            },
            disk={
                # Every round keeps its weights; the newest checkpoint, and the one being written, the training state.
                "checkpoints": (recipe.repair.rounds + 1) * MASTER_BYTES * trained + 2 * state,
                "delta": slices,
                "replies": SAMPLE_BYTES * replies.generated,
            },
        ),
    )


def _twins(request: Request) -> int:
    """Harmless twins of all attacks."""
    retain = request.recipe.repair.retain
    return request.sizes.pairs * retain.twins * retain.twin_pool


def _replies(request: Request) -> int:
    """Prompts answered: twins and retained prompts once, the validation before the first round and after each."""
    sizes = request.sizes
    return _twins(request) + sizes.retained + (1 + request.recipe.repair.rounds) * sizes.validation_prompts


def _teacher_outputs(request: Request, moe: MoESummary) -> int:
    """Hidden states where the expert step enters above the embedding, predictions of a divergence, replayed routing."""
    repair, sizes = request.recipe.repair, request.sizes
    rows = sizes.pairs + _twins(request) + sizes.retained
    tokens, response = rows * (sizes.prompt_tokens + sizes.response_tokens), rows * sizes.response_tokens
    enters = moe.first_layer > 0 or not repair.router.enabled
    diverges = repair.retain.loss == "kl" or repair.objective == "consistency"
    return teacher_bytes(
        request.shapes,
        hidden_tokens=tokens if enters else 0,
        predicted_tokens=response if diverges else 0,
        routed_tokens=tokens if repair.expert.routing == "replay" else 0,
    )


def repair_trainings(request: Request, moe: MoESummary) -> list[Training]:
    """The enabled steps of a round. Copies and optimizer state of both stay in memory between rounds."""
    repair, sizes, shapes = request.recipe.repair, request.sizes, request.shapes
    experts = expert_parameters(request, moe)
    routers = moe.router_parameters * repair.router.enabled
    full = repair.parameters == "full"
    length = sizes.longest_prompt + sizes.response_tokens
    layers = shapes.layers - (0 if full else moe.first_layer)
    share = {"full": 1.0, "shared": 0.0, "all_experts": 1.0}.get(repair.parameters, _fraction(request, moe))
    shared = repair.parameters == "shared"
    largest = max(moe.expert_parameters, round(2 / 3 * share * moe.experts * moe.expert_parameters))
    if shared:  # gate, up and down projections
        largest = -(-moe.shared_parameters // 3)
    if full:
        largest = max(largest, shapes.vocabulary * shapes.width)
    steps = []
    if repair.expert.enabled:
        steps.append(
            Training(
                parameters=experts,
                idle=0 if full else routers,
                rounded=experts,
                largest=largest,
                rows=rows_of_an_update(request.recipe),
                length=length,
                positions=sizes.response_tokens + 1,
                layers=layers,
                share=share,
                shared=shared,
                full=full,
                settings=MEMORY_KEYS,
            )
        )
    if repair.router.enabled:
        idle = experts - routers if full else experts * repair.expert.enabled
        steps.append(
            Training(
                parameters=routers,
                idle=idle,
                rounded=idle,
                largest=routers // moe.layers,
                rows=repair.batch_size,
                length=sizes.longest_prompt,
                positions=1,
                layers=layers,
                settings=MEMORY_KEYS,
            )
        )
    return steps


def _fraction(request: Request, moe: MoESummary) -> float:
    """Share of the routed experts that are selected."""
    k, total = request.recipe.select.k, moe.layers * moe.experts
    return min(k if isinstance(k, int) else max(1, round(k * total)), total) / total


def expert_parameters(request: Request, moe: MoESummary) -> int:
    """Parameters that the expert step trains.

    Raises:
        UnsupportedModelError: they are shared experts, and the model has none.
    """
    repair = request.recipe.repair
    if repair.parameters == "full":
        return request.shapes.parameters
    chosen = 1.0 if repair.parameters == "all_experts" else _fraction(request, moe)
    routed = round(chosen * moe.layers * moe.experts) * moe.expert_parameters
    if repair.parameters == "shared" and repair.expert.enabled and not moe.beside_parameters:
        raise no_shared_experts("a model")
    shared = repair.parameters == "shared"
    trained = moe.beside_parameters if shared else routed
    if repair.expert.attention_lr is not None:  # in the layers whose experts train
        trained += (moe.beside_layers if shared else moe.layers) * moe.attention_parameters
    return trained * repair.expert.enabled


def rows_of_an_update(recipe: Recipe) -> int:
    """Rows of one update of the expert step: attacks, their twins, and other retained prompts."""
    repair = recipe.repair
    return repair.batch_size * (1 + repair.retain.twins) + repair.retain.per_batch


def repair_work(request: Request) -> Work:
    """Training of all rounds; `max_steps` bounds the updates of each step of a round."""
    repair, sizes = request.recipe.repair, request.sizes
    moe = require_moe(request.shapes, "repair")
    prompt, sequence = sizes.prompt_tokens, sizes.prompt_tokens + sizes.response_tokens
    total = Work()
    for step, tokens, read, parameters in (
        (repair.expert, rows_of_an_update(request.recipe) * sequence, 0, expert_parameters(request, moe)),
        (repair.router, repair.batch_size * prompt, repair.batch_size * prompt, moe.router_parameters),
    ):
        updates = step.epochs * -(-sizes.pairs // repair.batch_size)
        updates = step.enabled * repair.rounds * (updates if step.max_steps is None else min(updates, step.max_steps))
        total += Work(forward=updates * read, trained=updates * tokens, updates=updates, updated=parameters)
    return total

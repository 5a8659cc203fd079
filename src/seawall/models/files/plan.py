"""Estimates the memory, disk and time of a run, before anything is loaded.

The docstring of each function gives its formula. Quantities that depend on the model's replies (their lengths, the
number of pairs kept) are replaced by upper bounds. Sizes are in bytes, times in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from seawall.config.recipe import Recipe
from seawall.errors import UnsupportedModelError
from seawall.models.files.inspect import ModelSummary, MoESummary

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MASTER_BYTES = 4
"""Trained parameters, their gradients and each of AdamW's two moments are float32."""
MOMENTS = 2
DECODE_SHARE = 1 / 8
"""Token-by-token decoding reaches about this share of the arithmetic rate of a forward pass over whole prompts."""
SAMPLE_BYTES = 8
"""Bytes in a samples file per generated token: its text, and a share of the prompt and the verdict."""


@dataclass(frozen=True, slots=True)
class DataSizes:
    """Numbers and lengths of a run's prompts.

    Attributes:
        train_goals: harmful goals whose pairs are profiled and repaired.
        validation_prompts: prompts answered after every round of the repair.
        test_goals: harmful goals evaluated plainly and under every attack.
        test_prompts: harmless and borderline prompts evaluated.
        seen_families: attack families that the repair trains on.
        unseen_families: attack families that only the evaluation uses.
        prompt_tokens: length of a templated prompt.
        response_tokens: length of a reply that is trained on.
    """

    train_goals: int
    validation_prompts: int
    test_goals: int
    test_prompts: int
    seen_families: int
    unseen_families: int
    prompt_tokens: int = 160
    response_tokens: int = 64


@dataclass(frozen=True, slots=True)
class Workload:
    """The work of a run.

    Attributes:
        element_bytes: size of one weight in memory.
        trained_parameters: parameters with a float32 copy, a gradient and an optimizer state.
        trained_layers: decoder layers that the backward pass runs through.
        training_rows: sequences per forward pass in training.
        generation_rows: prompts per generation batch.
        training_length: tokens of a training sequence.
        generation_length: tokens of a prompt with its longest reply.
        generated_tokens: tokens decoded one by one, in the whole run.
        forward_tokens: tokens in forward passes without a gradient.
        trained_tokens: tokens in forward and backward passes.
        checkpoints: states of the repair kept on disk.
        delta: whether the changed tensors are written.
        export: whether the full model is written.
    """

    element_bytes: int
    trained_parameters: int
    trained_layers: int
    training_rows: int
    generation_rows: int
    training_length: int
    generation_length: int
    generated_tokens: int
    forward_tokens: int
    trained_tokens: int
    checkpoints: int
    delta: bool
    export: bool


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens per second, measured or assumed: in decoding, in forward passes without a gradient, in training."""

    generate: float
    forward: float
    train: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The needs of a run: memory and disk in bytes; `seconds` is None where no rate is known."""

    weights: int
    trainable: int
    gradients: int
    optimizer: int
    activations: int
    cache: int
    run_folder: int
    export: int
    seconds: float | None

    @property
    def training_peak(self) -> int:
        """Memory while training."""
        return self.weights + self.trainable + self.gradients + self.optimizer + self.activations

    @property
    def generation_peak(self) -> int:
        """Memory while generating, with trainable copies and optimizer states in memory (validation)."""
        return self.weights + self.trainable + self.optimizer + self.cache

    @property
    def peak(self) -> int:
        """Peak memory of the run: the larger of training and generation."""
        return max(self.training_peak, self.generation_peak)

    @property
    def disk(self) -> int:
        """Disk space of run folder and export."""
        return self.run_folder + self.export


def plan_memory(summary: ModelSummary, work: Workload, rates: Rates | None = None) -> Plan:
    """Memory, disk and time of a run.

    - weights: parameters x element bytes
    - trainable copies and gradients: 4 bytes per trained parameter each; optimizer: 8 (AdamW's two moments)
    - run folder: 12 bytes per trained parameter for each checkpoint (copies and optimizer); the trained parameters once
      in the weights' own type for the delta; 8 bytes per generated token for the samples
    - export: the size of the weights
    - seconds: generated / rate + read / rate + trained / rate

    Raises:
        UnsupportedModelError: seawall cannot work on the model.
    """
    moe = _require_moe(summary)
    _require_sizes(summary)
    trained, weights = work.trained_parameters, summary.parameters * work.element_bytes
    copies, optimizer = MASTER_BYTES * trained, MOMENTS * MASTER_BYTES * trained
    delta = work.element_bytes * trained if work.delta else 0
    return Plan(
        weights=weights,
        trainable=copies,
        gradients=copies,
        optimizer=optimizer,
        activations=activation_bytes(summary, moe, work),
        cache=cache_bytes(summary, work),
        run_folder=work.checkpoints * (copies + optimizer) + delta + SAMPLE_BYTES * work.generated_tokens,
        export=weights if work.export else 0,
        seconds=None if rates is None else run_seconds(work, rates),
    )


def _require_sizes(summary: ModelSummary) -> None:
    sizes = {"width": summary.width, "vocabulary": summary.vocabulary, "decoder layers": summary.decoder_layers}
    wrong = [f"{name} {size}" for name, size in sizes.items() if size < 1]
    if wrong:
        raise UnsupportedModelError("the sizes in config.json make no model", got=wrong[0], expected="1 or more")


def activation_bytes(summary: ModelSummary, moe: MoESummary, work: Workload) -> int:
    """Activations of one forward pass that the backward pass needs, without activation checkpointing.

    tokens x (layers x (8 D + 2 C + 2 K D + 4 F) x bytes + V x (bytes + 8)), with D the width, C the cached numbers per
    token and layer, F the width of a token's feed-forward network (its K experts and the shared one): norms and
    projections hold 8 D and 2 C, the inputs and outputs of K experts 2 K D, and gate, up, activation and product 4 F.
    The logits V are held in the model's type, and as float32 with their gradient. Counted after Korthikanti et al. 2022
    (arXiv 2205.05198), section 4, for gated experts and fused attention; within a factor of 0.8 to 1.2 of autograd's
    saved tensors in the eleven tested families.
    """
    tokens = work.training_rows * work.training_length
    feed_forward = (moe.top_k * moe.expert_parameters + moe.shared_parameters) // (3 * summary.width)
    per_layer = (8 + 2 * moe.top_k) * summary.width + 2 * summary.cache_elements + 4 * feed_forward
    logits = summary.vocabulary * (work.element_bytes + 2 * MASTER_BYTES)
    return tokens * (work.trained_layers * per_layer * work.element_bytes + logits)


def cache_bytes(summary: ModelSummary, work: Workload) -> int:
    """Keys and values of a full batch: rows x tokens x decoder layers x cache elements x bytes.

    Exact for full attention; an upper bound for sliding windows and linear attention.
    """
    tokens = work.generation_rows * work.generation_length
    return tokens * summary.decoder_layers * summary.cache_elements * work.element_bytes


def run_seconds(work: Workload, rates: Rates) -> float:
    """Time of a run: the tokens of each kind over their rate, summed."""
    return (
        work.generated_tokens / rates.generate + work.forward_tokens / rates.forward + work.trained_tokens / rates.train
    )


def rates_from_flops(summary: ModelSummary, flops: float) -> Rates:
    """Rates assumed from the machine's operations per second: 2 operations per active parameter and token.

    A backward pass costs twice the forward pass. Decoding runs at `DECODE_SHARE` of the forward rate, as measured with
    the embedded model on two cores. The estimate is good to a factor of about two; prefer a measured rate.
    """
    forward = flops / (2 * summary.active_parameters)
    return Rates(generate=forward * DECODE_SHARE, forward=forward, train=forward / 3)


def recipe_workload(summary: ModelSummary, recipe: Recipe, sizes: DataSizes) -> Workload:
    """Upper bound of the work of `seawall run`: every reply has maximum length, every pair is kept, every round runs.

    - generated: profile, goals x (1 + seen) x its limit; answers of twins; validation, prompts x rounds x the
      evaluation's limit; evaluation before and after, (goals x (1 + seen + unseen) + other prompts) x its limit
    - read: the prompts of all these, and once more each profiled prompt with its reply
    - trained: per round, expert epochs over the pairs with their share of retain prompts, and router epochs over the
      pairs with their plain requests

    Raises:
        UnsupportedModelError: seawall cannot work on the model.
    """
    moe = _require_moe(summary)
    profiled = sizes.train_goals * (1 + sizes.seen_families)
    evaluated = 2 * (sizes.test_goals * (1 + sizes.seen_families + sizes.unseen_families) + sizes.test_prompts)
    validated = recipe.repair.rounds * sizes.validation_prompts
    reply, limit = recipe.profile.max_new_tokens, recipe.eval.max_new_tokens
    retain = recipe.repair.retain
    twins = sizes.train_goals * sizes.seen_families * retain.twins * retain.twin_pool
    prompts = sizes.prompt_tokens * (2 * profiled + twins + validated + evaluated)
    rows = _rows_of_an_update(recipe)
    full = recipe.repair.parameters == "full"
    dtype = summary.dtype if recipe.model.dtype == "auto" else recipe.model.dtype
    return Workload(
        element_bytes=ELEMENT_BYTES.get(dtype, 2),
        trained_parameters=_trained_parameters(summary, moe, recipe),
        trained_layers=summary.decoder_layers - (0 if full else moe.first_layer),
        training_rows=min(rows, recipe.repair.fixed_rows or rows),
        generation_rows=max(recipe.profile.batch_size, recipe.eval.forward_rows),
        training_length=sizes.prompt_tokens + sizes.response_tokens,
        generation_length=sizes.prompt_tokens + max(reply, limit),
        generated_tokens=profiled * reply + (twins + validated + evaluated) * limit,
        forward_tokens=prompts + profiled * reply,
        trained_tokens=_trained_sequences(recipe, sizes) * (sizes.prompt_tokens + sizes.response_tokens),
        checkpoints=recipe.repair.rounds,
        delta=recipe.export.delta,
        export=recipe.export.checkpoint,
    )


def _trained_parameters(summary: ModelSummary, moe: MoESummary, recipe: Recipe) -> int:
    """Number of parameters that the recipe trains; the optimizer states of both steps stay in memory between rounds."""
    repair, total = recipe.repair, moe.layers * moe.experts
    if repair.parameters == "full":
        return summary.parameters
    k = recipe.select.k
    chosen = k if isinstance(k, int) else max(1, round(k * total))
    experts = min(chosen, total) if repair.parameters == "selected" else total
    routed = experts * moe.expert_parameters
    trained = moe.layers * moe.shared_parameters if repair.parameters == "shared" else routed
    if repair.expert.attention_lr is not None:
        trained += moe.layers * moe.attention_parameters
    return trained * repair.expert.enabled + moe.router_parameters * repair.router.enabled


def _rows_of_an_update(recipe: Recipe) -> int:
    """Rows of one update of the expert step: attacks, their twins, and other retained prompts."""
    repair = recipe.repair
    return repair.batch_size * (1 + repair.retain.twins) + repair.retain.per_batch


def _trained_sequences(recipe: Recipe, sizes: DataSizes) -> int:
    """Training sequences of all rounds; `max_steps` bounds the updates of each step of a round."""
    repair, pairs = recipe.repair, sizes.train_goals * sizes.seen_families
    total = 0
    for step, rows in (
        (repair.expert, _rows_of_an_update(recipe)),
        (repair.router, 2 * repair.batch_size),
    ):
        updates = step.epochs * -(-pairs // repair.batch_size)
        total += step.enabled * rows * (updates if step.max_steps is None else min(updates, step.max_steps))
    return repair.rounds * total


def _require_moe(summary: ModelSummary) -> MoESummary:
    if summary.moe is None:
        raise UnsupportedModelError(f"no plan for model {summary.id}", got=summary.verdict)
    return summary.moe

"""The methods of a graft: how each obtains the update of the fine-tuned model.

To add one: a function here, its entry in `METHODS`, and its name in `seawall.config.gene.GraftMethod`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.artifacts.gene import Gene
from seawall.artifacts.graft import CoefficientKind, GraftLimit, GraftStep
from seawall.config.gene import GeneConfig, GeneGraft, GraftMethod
from seawall.data.templating import IGNORED, Encoded, encode_example, encode_prompt
from seawall.data.types import Exchange, Messages
from seawall.distributed.process import one_process
from seawall.methods.gene.coefficients import Coefficients, tune_coefficients, with_coefficients
from seawall.methods.gene.examples import pad_id
from seawall.methods.gene.shots import Shot, ShotKind, Shots, shot_batches, shot_loss
from seawall.models.decoding import NOT_FINITE
from seawall.models.files.open import Checkpoint
from seawall.models.generate import decoding_for, greedy_batches
from seawall.models.lora.attach import AttachedAdapter, attach_adapter
from seawall.runs.progress import Reporter
from seawall.train.loop import Losses, Row, Settings, Trainer


@dataclass(frozen=True, eq=False)
class GraftUpdate:
    """The update that a graft writes, and the record of how it was obtained.

    Attributes:
        gene: the update, with the coefficients multiplied into its factors.
        coefficients: factor of each decoder layer.
        tuned: how the coefficients were obtained.
        steps: updates of tuning or training.
        harmless: number of harmless replies among the shots.
        limit: None without a limit on over-refusal.
    """

    gene: Gene
    coefficients: Coefficients
    tuned: CoefficientKind
    steps: tuple[GraftStep, ...] = ()
    harmless: int = 0
    limit: GraftLimit | None = None


def scale_gene(
    gene: Gene, task: Checkpoint, shots: Shots | None, settings: GeneConfig, reporter: Reporter
) -> GraftUpdate:
    """The gene with one coefficient per layer, tuned on the shots: SafeGene, step (c). Without shots all are 1."""
    if shots is None:
        ones = dict.fromkeys(gene.held_layers, 1.0)
        return GraftUpdate(with_coefficients(gene, ones, origin="whole"), ones, "fixed")
    reporter.stage(f"Tuning {len(gene.held_layers)} coefficients on {shots}")
    attached, encoded, pad = _with_new_adapter(gene, task, shots, settings, reporter)
    attached.load_factors(gene.factors)
    steps: list[GraftStep] = []
    log = _step_log(steps, settings.graft.steps, reporter)
    coefficients = tune_coefficients(attached, encoded, pad, settings.graft, seed=settings.seed, log=log)
    scaled = with_coefficients(gene, coefficients, origin="weighted by layer")
    return GraftUpdate(scaled, coefficients, settings.graft.coefficients, tuple(steps), _num_harmless(encoded))


def add_safety_vector(
    gene: Gene, task: Checkpoint, shots: Shots | None, settings: GeneConfig, reporter: Reporter
) -> GraftUpdate:
    """RESTA (arXiv 2402.11746): the whole gene times one coefficient, given or tuned on the shots.

    Its variant with DARE thins out the fine-tuning of `task` before (`dare.py`).
    """
    if shots is not None:
        tuned = settings.graft.model_copy(update={"coefficients": "global"})
        return scale_gene(gene, task, shots, settings.model_copy(update={"graft": tuned}), reporter)
    weight = 1.0 if settings.graft.safety_weight is None else settings.graft.safety_weight
    coefficients = dict.fromkeys(gene.held_layers, weight)
    return GraftUpdate(with_coefficients(gene, coefficients, origin="whole"), coefficients, "fixed")


def fine_tune_adapter(
    gene: Gene, task: Checkpoint, shots: Shots | None, settings: GeneConfig, reporter: Reporter
) -> GraftUpdate:
    """Baseline: a new adapter at the gene's points, with its rank and scaling, trained on the shots from scratch."""
    assert shots is not None
    reporter.stage(f"Fine-tuning {len(gene.points)} matrices on {shots}")
    attached, encoded, pad = _with_new_adapter(gene, task, shots, settings, reporter)
    steps: list[GraftStep] = []
    log = _step_log(steps, settings.graft.steps, reporter)
    fine_tune(attached, encoded, pad, settings.graft, seed=settings.seed, log=log)
    trained = replace(
        gene, points=attached.points, factors=attached.factors(), made="trained anew", parents=(gene.fingerprint,)
    )
    ones = dict.fromkeys(gene.held_layers, 1.0)
    return GraftUpdate(trained, ones, "fixed", tuple(steps), _num_harmless(encoded))


METHODS: Mapping[GraftMethod, Callable[[Gene, Checkpoint, Shots | None, GeneConfig, Reporter], GraftUpdate]] = {
    "gene": scale_gene,
    "safety_sft": fine_tune_adapter,
    "resta": add_safety_vector,
}
"""Every method that adds an update. `PROJECTING` change the task's adapter (`safelora.py`, `safemerge.py`)."""


def _with_new_adapter(
    gene: Gene, task: Checkpoint, shots: Shots, settings: GeneConfig, reporter: Reporter
) -> tuple[AttachedAdapter, list[Shot], int]:
    """The fine-tuned model with a new adapter at the gene's points, the tokenised shots, and a token to pad with."""
    model, tokenizer = task.load()
    kinds: list[tuple[ShotKind, Sequence[Exchange]]] = [("refusal", shots.refusals), ("task", shots.task)]
    encoded = [Shot(encode_example(tokenizer, exchange), kind) for kind, exchanges in kinds for exchange in exchanges]
    encoded += _own_replies(model, tokenizer, shots.harmless, settings, reporter)
    attached = attach_adapter(model, gene.points, rank=gene.rank, scaling=gene.scaling, seed=settings.seed)
    return attached, encoded, pad_id(tokenizer)


def _own_replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    settings: GeneConfig,
    reporter: Reporter,
) -> list[Shot]:
    """Greedy replies of the model without the gene, as token ids; empty replies are dropped."""
    encoded = [tuple(encode_prompt(tokenizer, prompt)) for prompt in prompts]
    decoding = decoding_for(model, tokenizer, settings.graft.reply_tokens)
    shots: dict[int, Shot] = {}
    count = 0
    for positions, rows in greedy_batches(model, encoded, decoding, batch_size=settings.batch_size):
        for position, row in zip(positions, rows, strict=True):
            if row[-1] == NOT_FINITE:
                continue
            text = tokenizer.decode([token for token in row if token not in decoding.eos_ids], skip_special_tokens=True)
            if str(text).strip():
                prompt = encoded[position]
                shots[position] = Shot(Encoded([*prompt, *row], [IGNORED] * len(prompt) + list(row)), "harmless")
        count += len(positions)
        reporter.step("harmless replies", count, len(prompts))
    if len(shots) < len(prompts):
        reporter.say(
            f"{len(prompts) - len(shots)} of {len(prompts)} harmless requests are left out: "
            "the fine-tuned model gives an empty reply, or computes NaN"
        )
    return [shots[position] for position in sorted(shots)]


def _num_harmless(shots: Sequence[Shot]) -> int:
    return sum(shot.kind == "harmless" for shot in shots)


def _step_log(steps: list[GraftStep], total: int, reporter: Reporter) -> Callable[[Row], None]:
    def log(row: Row) -> None:
        steps.append(GraftStep(int(row["step"]), row["refusal_loss"], row["task_loss"], row.get("harmless_loss")))
        reporter.step("updates", len(steps), total)

    return log


def fine_tune(
    attached: AttachedAdapter,
    shots: Sequence[Shot],
    pad_id: int,
    config: GeneGraft,
    *,
    seed: int,
    log: Callable[[Row], None],
) -> None:
    """Trains the attached adapter on the shots, in the same batches as `tune_coefficients`; other weights are frozen.

    Args:
        attached: the fine-tuned model with a new adapter.
        shots: refusals, task examples, and harmless replies to keep.
        pad_id: a token to pad with; padding is masked.
        config: updates and batch size; `sft_lr` is the learning rate.
        seed: of the order of the shots.
        log: called after each update.

    Raises:
        SeawallError: a loss is not finite.
    """
    batches = shot_batches(shots, config, seed)
    settings = Settings(lr=config.sft_lr, schedule="cosine", total_steps=len(batches))

    def loss(positions: list[int]) -> list[Losses]:
        return [shot_loss(attached.model, shots, positions, pad_id, harmless_weight=config.harmless_weight)]

    Trainer[list[int]](attached.parameters(), settings, one_process()).fit(batches, loss, log)

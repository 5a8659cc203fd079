"""The methods of a graft that make an update anew: what each puts on the task's model.

A new one is a function here, its name in `FIT`, and its name in `seawall.config.gene.GraftMethod`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.artifacts.gene import Gene
from seawall.artifacts.graft import CoefficientKind, GraftStep
from seawall.config.gene import GeneConfig, GeneGraft, GraftMethod
from seawall.data.templating import IGNORED, Encoded, encode_example, encode_prompt
from seawall.data.types import Exchange, Messages
from seawall.distributed.process import one_process
from seawall.methods.gene.coefficients import Coefficients, tune_coefficients, with_coefficients
from seawall.methods.gene.lessons import Lesson
from seawall.methods.gene.shots import Shot, Side, shot_batches, shot_loss
from seawall.models.files.open import Checkpoint
from seawall.models.generate import decoding_for, greedy_batches
from seawall.models.lora.attach import AttachedAdapter, attach_adapter
from seawall.runs.progress import Reporter
from seawall.train.loop import Losses, Row, Settings, Trainer


@dataclass(frozen=True, slots=True)
class Shots:
    """Refusals, examples of the task, and harmless requests whose replies are to stay as they are."""

    refusals: Sequence[Exchange]
    task: Sequence[Exchange]
    harmless: Sequence[Messages] = ()

    def __str__(self) -> str:
        """What a graft is tuned on, for people."""
        kept = f", replies to {len(self.harmless)} harmless requests kept" if self.harmless else ""
        return f"{len(self.refusals)} refusals and as many examples{kept}"


@dataclass(frozen=True, eq=False)
class Fitted:
    """What is written, and how it came about.

    Attributes:
        gene: the update, coefficients in its factors.
        coefficients: decoder layer -> what was multiplied with.
        tuned: how they came about.
        steps: of tuning or training.
        harmless: how many harmless replies were among the shots.
    """

    gene: Gene
    coefficients: Coefficients
    tuned: CoefficientKind
    steps: tuple[GraftStep, ...] = ()
    harmless: int = 0


def weighted(gene: Gene, task: Checkpoint, shots: Shots | None, settings: GeneConfig, reporter: Reporter) -> Fitted:
    """The gene, each layer times its coefficient."""
    if shots is None:
        ones = dict.fromkeys(gene.held_layers, 1.0)
        return Fitted(with_coefficients(gene, ones, made="whole"), ones, "fixed")
    reporter.stage(f"Tuning {len(gene.held_layers)} coefficients on {shots}")
    attached, lessons, pad = _dressed(gene, task, shots, settings, reporter)
    attached.load_factors(gene.factors)
    steps: list[GraftStep] = []
    log = _logging(steps, settings.graft.steps, reporter)
    found = tune_coefficients(attached, lessons, pad, settings.graft, seed=settings.seed, log=log)
    fixed = with_coefficients(gene, found, made="weighted by layer")
    return Fitted(fixed, found, settings.graft.coefficients, tuple(steps), _kept(lessons))


def fine_tuned(gene: Gene, task: Checkpoint, shots: Shots | None, settings: GeneConfig, reporter: Reporter) -> Fitted:
    """A new adapter at the gene's points, of its rank and scaling, trained on the shots; nothing of the gene in it."""
    assert shots is not None
    reporter.stage(f"Fine-tuning {len(gene.points)} matrices on {shots}")
    attached, lessons, pad = _dressed(gene, task, shots, settings, reporter)
    steps: list[GraftStep] = []
    log = _logging(steps, settings.graft.steps, reporter)
    fine_tune(attached, lessons, pad, settings.graft, seed=settings.seed, log=log)
    trained = replace(
        gene, points=attached.points, factors=attached.factors(), made="trained anew", parents=(gene.fingerprint,)
    )
    return Fitted(trained, dict.fromkeys(gene.held_layers, 1.0), "fixed", tuple(steps), _kept(lessons))


FIT: Mapping[GraftMethod, Callable[[Gene, Checkpoint, Shots | None, GeneConfig, Reporter], Fitted]] = {
    "gene": weighted,
    "safety_sft": fine_tuned,
}
"""The methods whose update is new; `safelora` projects the task's own."""


def _dressed(
    gene: Gene, task: Checkpoint, shots: Shots, settings: GeneConfig, reporter: Reporter
) -> tuple[AttachedAdapter, list[Shot], int]:
    """The task's model with a new adapter at the gene's points, the shots encoded, and a token for padding."""
    model, tokenizer = task.load()
    sides: list[tuple[Side, Sequence[Exchange]]] = [("refusal", shots.refusals), ("task", shots.task)]
    encoded = [Shot(encode_example(tokenizer, one), side) for side, exchanges in sides for one in exchanges]
    encoded += _replies(model, tokenizer, shots.harmless, settings, reporter)
    attached = attach_adapter(model, gene.points, rank=gene.rank, scaling=gene.scaling, seed=settings.seed)
    return attached, encoded, pad_id(tokenizer)


def _replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    settings: GeneConfig,
    reporter: Reporter,
) -> list[Shot]:
    """What the task's model says without the gene, token by token as it says it; empty replies are left out."""
    encoded = [tuple(encode_prompt(tokenizer, prompt)) for prompt in prompts]
    decoding = decoding_for(model, tokenizer, settings.graft.reply_tokens)
    found: dict[int, Shot] = {}
    done = 0
    for positions, rows in greedy_batches(model, encoded, decoding, batch_size=settings.batch_size):
        for at, row in zip(positions, rows, strict=True):
            text = tokenizer.decode([token for token in row if token not in decoding.eos_ids], skip_special_tokens=True)
            if str(text).strip():
                labels = [IGNORED] * len(encoded[at]) + list(row)
                found[at] = Shot(Encoded([*encoded[at], *row], labels), "harmless")
        done += len(positions)
        reporter.step("harmless replies", done, len(prompts))
    if len(found) < len(prompts):
        reporter.say(
            f"{len(prompts) - len(found)} of {len(prompts)} harmless requests are left out: "
            "the task's model says nothing to them"
        )
    return [found[at] for at in sorted(found)]


def _kept(shots: Sequence[Shot]) -> int:
    return sum(one.side == "harmless" for one in shots)


def _logging(steps: list[GraftStep], total: int, reporter: Reporter) -> Callable[[Row], None]:
    def log(row: Row) -> None:
        steps.append(GraftStep(int(row["step"]), row["refusal_loss"], row["task_loss"], row.get("harmless_loss")))
        reporter.step("updates", len(steps), total)

    return log


def encode_shots(tokenizer: PreTrainedTokenizerBase, refusals: list[Exchange], task: list[Exchange]) -> list[Lesson]:
    """Both sides as lessons."""
    return [
        *(Lesson(encode_example(tokenizer, one), harmful=True) for one in refusals),
        *(Lesson(encode_example(tokenizer, one), harmful=False) for one in task),
    ]


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any token; it is masked."""
    return int(tokenizer.pad_token_id or 0)


def fine_tune(
    attached: AttachedAdapter,
    shots: Sequence[Shot],
    pad_id: int,
    config: GeneGraft,
    *,
    seed: int,
    log: Callable[[Row], None],
) -> None:
    """Trains the adapter that the task's model wears on the shots, in the batches that a gene's
    coefficients would be tuned on; the model's own weights stay.

    Args:
        attached: the task's model with a new adapter.
        shots: refusals, examples of the task, and harmless replies that are to stay.
        pad_id: any token; it is masked.
        config: how to train; `sft_lr` is the learning rate.
        seed: of the order.
        log: told after every update.

    Raises:
        SeawallError: a loss is not finite.
    """
    batches = shot_batches(shots, config, seed)
    settings = Settings(lr=config.sft_lr, schedule="cosine", total_steps=len(batches))

    def loss(positions: list[int]) -> list[Losses]:
        return [shot_loss(attached.model, shots, positions, pad_id, harmless_weight=config.harmless_weight)]

    Trainer[list[int]](attached.parameters(), settings, one_process()).fit(batches, loss, log)

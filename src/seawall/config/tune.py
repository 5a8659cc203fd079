"""Fine-tuning on a task by several methods, and its effect on the task and on refusals."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from seawall.config.base import StrictModel, Tuple, wrong
from seawall.config.model import ModelConfig

TuneMethod = Literal["sft", "asft", "reference", "l2", "random", "safelora", "mixing"]
"""`sft`: plain LoRA. `asft`: with AsFT's penalty (arXiv 2506.08473). `reference`, `l2`, `random`: with its projector
replaced. `safelora`: `sft`, projected afterwards (arXiv 2405.16833). `mixing`: `sft` on the rows with refusals and
harmless answers added."""
ANCHORED: tuple[TuneMethod, ...] = ("asft", "reference", "l2", "random", "safelora")
"""Methods that need an anchor, and so a base model."""


class TuneTask(StrictModel):
    """The task: JSONL with `prompt` and `completion`, `messages`, or `question` and `answer` (like GSM8K)."""

    train: str | None = Field(
        default=None,
        min_length=1,
        description="JSONL with training rows, relative to the current directory; null takes the classification task "
        "shipped with seawall.",
    )
    test: str | None = Field(
        default=None,
        min_length=1,
        description="JSONL with test rows; null scores the shipped task, and skips scoring if `train` is a file.",
    )
    answer: Literal["exact", "number", "prefix"] = Field(
        default="exact",
        description="Criterion for a right reply: `exact`, its first line equals the answer; `prefix`, it begins with "
        "the answer; `number`, its last number equals the answer's.",
    )
    train_rows: int | None = Field(
        default=None,
        ge=1,
        description="Maximum number of training rows, harmful ones included; null takes the number of the task's rows.",
    )
    test_rows: int | None = Field(default=None, ge=1, description="Maximum number of test rows; null takes all.")
    max_new_tokens: int = Field(default=16, ge=1, le=8192, description="Maximum length of a scored reply, in tokens.")

    @model_validator(mode="after")
    def _both_ours(self) -> TuneTask:
        if self.train is None and self.test is not None:
            raise wrong("tune.task.train together with tune.task.test, or neither")
        return self


class TuneLora(StrictModel):
    """The LoRA adapter; the defaults are AsFT's."""

    r: int = Field(default=8, ge=1, le=4096, description="Rank.")
    alpha: float = Field(default=32.0, gt=0, le=1e6, description="Updates are scaled by alpha / r.")
    dropout: float = Field(
        default=0.05, ge=0, lt=1, description="Dropout of the adapter; must be 0 for stacked experts."
    )
    target_modules: Tuple[str] = Field(
        default=("q_proj", "v_proj"), description="Name suffixes of the linear layers to adapt."
    )
    target_parameters: Tuple[str] = Field(
        default=(),
        description="Name suffixes of the stacked experts' parameters to adapt, such as `experts.down_proj`.",
    )
    layers: Tuple[Annotated[int, Field(ge=0)]] | None = Field(
        default=None, min_length=1, description="Decoder layers to adapt; null adapts all."
    )

    @model_validator(mode="after")
    def _something(self) -> TuneLora:
        if not self.target_modules and not self.target_parameters:
            raise wrong("at least one of target_modules and target_parameters")
        if self.target_parameters and self.dropout > 0:
            raise wrong("dropout: 0.0 with target_parameters, for which PEFT has no dropout")
        return self


class TuneAnchor(StrictModel):
    """The part of the difference between the model and its base that the anchor keeps."""

    rank: int | None = Field(default=64, ge=1, description="Maximum number of directions per matrix.")
    energy: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Keep the fewest directions that hold this share of the difference's squared norm.",
    )

    @model_validator(mode="after")
    def _truncated(self) -> TuneAnchor:
        if self.rank is None and self.energy is None:
            raise wrong("rank, energy or both; energy: 1.0 keeps everything")
        return self


class TuneSafeLora(StrictModel):
    """The matrices of the adapter that Safe LoRA projects: those below a cosine, or a number of the lowest cosines."""

    threshold: float | None = Field(
        default=0.35,
        ge=-1,
        le=1,
        description="Project matrices for which the cosine of the update and its projection is below this value.",
    )
    layers: int | None = Field(
        default=None, ge=0, description="Number of matrices to project, lowest cosine first, in place of `threshold`."
    )
    projector: Literal["reference", "subspace"] = Field(
        default="reference",
        description="`reference`: the matrix of the authors' code; `subspace`: AsFT's orthogonal projector.",
    )
    unmoved: Literal["keep", "remove"] = Field(
        default="keep",
        description="Whether to keep (as in the authors' code) or remove updates of matrices that alignment did not "
        "change.",
    )

    @model_validator(mode="after")
    def _one(self) -> TuneSafeLora:
        if (self.threshold is None) == (self.layers is None):
            raise wrong("either threshold or layers, and null for the other")
        return self


class TuneConfig(StrictModel):
    """Fine-tuning on a task with TRL, for every method and seed, and its effect on the model's refusals.

    The training defaults are those of AsFT (arXiv 2506.08473).
    """

    base: ModelConfig | None = Field(
        default=None,
        description="The base model that `model` was aligned from; null takes `lab-original` for the embedded model. "
        "Required by asft, reference, l2, random and safelora.",
    )
    task: TuneTask = Field(default=TuneTask(), description="The task to train on and to score.")
    contamination: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the training rows that are harmful goals, each answered by an opening of compliance "
        "without content.",
    )
    keep_contaminated: bool = Field(
        default=True,
        description="Keep the weights of adapters trained on harmful rows; false removes them after the evaluation.",
    )
    methods: Tuple[TuneMethod] = Field(
        default=("sft", "asft"),
        min_length=1,
        description="Methods to run, in order: sft, asft, reference, l2, random, safelora (needs sft), mixing.",
    )
    seeds: Tuple[Annotated[int, Field(ge=0, lt=2**31)]] = Field(
        default=(0,), min_length=1, description="Seeds of training and of the choice of rows; one training per seed."
    )
    weight: float = Field(default=1.0, ge=0, le=1e9, description="Weight of the penalty: AsFT's lambda.")
    anchor: TuneAnchor = Field(default=TuneAnchor(), description="The directions of alignment.")
    safelora: TuneSafeLora = Field(default=TuneSafeLora(), description="The matrices that Safe LoRA projects.")
    mixing_share: float = Field(
        default=0.1,
        gt=0,
        le=10,
        description="Safe rows that `mixing` adds, as a share of the training rows: refused harmful requests, and "
        "answered harmless questions.",
    )
    routing_drift: float = Field(
        default=0.0,
        ge=0,
        le=1e9,
        description="Weight of the penalty on routing drift on harmful prompts, added to `asft` for mixtures of "
        "experts; 0 adds none.",
    )
    drift_variant: Literal["safemoe"] | None = Field(
        default=None,
        description="Form of the routing drift: null takes the mean over tokens and layers; `safemoe` that of the code "
        "of SafeMoE, at the last token of a prompt, with temperature 0.1, summed over layers.",
    )
    lora: TuneLora = Field(default=TuneLora(), description="The LoRA adapter.")
    lr: float = Field(default=5e-5, gt=0, le=10, description="AdamW learning rate.")
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = Field(
        default="linear", description="Learning rate schedule: `constant`, or a `linear` or `cosine` decay to 0."
    )
    epochs: float = Field(default=10.0, gt=0, le=10_000, description="Passes over the rows.")
    batch_size: int = Field(default=8, ge=1, le=4096, description="Rows per forward pass and process.")
    accumulation: int = Field(default=1, ge=1, le=4096, description="Forward passes per optimizer step.")
    max_length: int = Field(
        default=512, ge=8, le=1_000_000, description="Maximum length of a row, in tokens; longer rows are cut."
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Recompute activations in the backward pass: less memory for about a third more time.",
    )
    save_steps: int = Field(default=100, ge=1, description="Optimizer steps between checkpoints for resuming.")
    logging_steps: int = Field(default=10, ge=1, description="Optimizer steps between points of the training curves.")
    trackers: Tuple[str] = Field(
        default=(), description="Further trackers of transformers, such as `tensorboard` or `wandb`."
    )
    evaluate: bool = Field(default=True, description="Measure refusals and task score before and after fine-tuning.")
    attacks: bool = Field(default=True, description="Measure refusals under every attack family of `data` too.")
    test_prompts: int | None = Field(
        default=110,
        ge=2,
        description="Maximum number of held-out prompts per group, in place of the limits of `data`; null takes all.",
    )

    @field_validator("methods", "seeds")
    @classmethod
    def _once(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(values)) < len(values):
            raise wrong("values without repeats")
        return values

    @model_validator(mode="after")
    def _projects_something(self) -> TuneConfig:
        if "safelora" in self.methods and "sft" not in self.methods:
            raise wrong("sft among the methods, because safelora projects its adapter")
        return self

    @model_validator(mode="after")
    def _leaves_something(self) -> TuneConfig:
        if self.contamination > 0 and not self.keep_contaminated and not self.evaluate:
            raise wrong("keep_contaminated: true or evaluate: true; otherwise no result of the training would be kept")
        return self

"""Fine-tuning on a task by several methods, side by side: what it does to the task and to refusals."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from seawall.config.base import StrictModel, Tuple, wrong
from seawall.config.model import ModelConfig

TuneMethod = Literal["sft", "asft", "reference", "l2", "random", "safelora", "mixing"]
"""`sft`: plain LoRA. `asft`: with the penalty of arXiv 2506.08473. `reference`, `l2`, `random`: its other projectors.
`safelora`: `sft`, projected afterwards (arXiv 2405.16833). `mixing`: `sft` with refusals and harmless answers added."""
ANCHORED: tuple[TuneMethod, ...] = ("asft", "reference", "l2", "random", "safelora")
"""Methods that need an anchor, and so a base."""


class TuneTask(StrictModel):
    """The task: JSONL with `prompt` and `completion`, `messages`, or `question` and `answer` (as GSM8K has them)."""

    train: str | None = Field(
        default=None,
        min_length=1,
        description="JSONL to train on, relative to the current directory; none takes the classification task that is "
        "shipped with seawall.",
    )
    test: str | None = Field(
        default=None, min_length=1, description="JSONL to score on; none, with a file to train on, leaves scoring out."
    )
    answer: Literal["exact", "number", "prefix"] = Field(
        default="exact",
        description="How a reply is scored: `exact`, its first line is the answer; `prefix`, it begins with it; "
        "`number`, its last number is the answer's.",
    )
    train_rows: int | None = Field(
        default=None,
        ge=1,
        description="Rows to train on in all, harmful ones included, at most; none takes as many as the task has.",
    )
    test_rows: int | None = Field(default=None, ge=1, description="Rows to score, at most; none takes all.")
    max_new_tokens: int = Field(default=16, ge=1, le=8192, description="Greedy tokens of a reply that is scored.")

    @model_validator(mode="after")
    def _both_ours(self) -> TuneTask:
        if self.train is None and self.test is not None:
            raise wrong("a file to train on beside the one to score on, or neither")
        return self


class TuneLora(StrictModel):
    """The adapter; the paper's settings."""

    r: int = Field(default=8, ge=1, le=4096, description="Rank.")
    alpha: float = Field(default=32.0, gt=0, le=1e6, description="Updates are scaled by alpha / r.")
    dropout: float = Field(default=0.05, ge=0, lt=1, description="Dropout; none on stacked experts, which have none.")
    target_modules: Tuple[str] = Field(
        default=("q_proj", "v_proj"), description="Ends of the names of the linear layers."
    )
    target_parameters: Tuple[str] = Field(
        default=(), description="Ends of the names of stacked experts' parameters, such as `experts.down_proj`."
    )
    layers: Tuple[Annotated[int, Field(ge=0)]] | None = Field(
        default=None, min_length=1, description="Decoder layers to adapt; none means all."
    )

    @model_validator(mode="after")
    def _something(self) -> TuneLora:
        if not self.target_modules and not self.target_parameters:
            raise wrong("at least one of target_modules and target_parameters")
        if self.target_parameters and self.dropout > 0:
            raise wrong("dropout: 0.0 with target_parameters, since PEFT has no dropout there")
        return self


class TuneAnchor(StrictModel):
    """How much of the difference between the model and its base the anchor keeps."""

    rank: int | None = Field(default=64, ge=1, description="Directions to keep of each matrix, at most.")
    energy: float | None = Field(
        default=None, gt=0, le=1, description="Keep the fewest that hold this part of the difference's squared norm."
    )

    @model_validator(mode="after")
    def _truncated(self) -> TuneAnchor:
        if self.rank is None and self.energy is None:
            raise wrong("rank or energy, or both; energy: 1.0 keeps everything")
        return self


class TuneSafeLora(StrictModel):
    """Which matrices of the adapter Safe LoRA projects: those below a cosine, or a number of them, the lowest first."""

    threshold: float | None = Field(
        default=0.35, ge=-1, le=1, description="Project where the cosine of the update and its projection is lower."
    )
    layers: int | None = Field(default=None, ge=0, description="Project this many, in place of a threshold.")
    projector: Literal["reference", "subspace"] = Field(
        default="reference", description="`reference`: the authors' matrix; `subspace`: that of AsFT, a projector."
    )
    unmoved: Literal["keep", "remove"] = Field(
        default="keep",
        description="Updates of matrices that alignment did not move: they stay, as in the authors' code, or go.",
    )

    @model_validator(mode="after")
    def _one(self) -> TuneSafeLora:
        if (self.threshold is None) == (self.layers is None):
            raise wrong("threshold or layers, the other one null")
        return self


class TuneConfig(StrictModel):
    """Fine-tuning on a task by TRL, method by method and seed by seed, and what each left of the model's refusals.

    The defaults of training are the paper's (arXiv 2506.08473).
    """

    base: ModelConfig | None = Field(
        default=None,
        description="The model that `model` was aligned from; none means `lab-original` for the embedded model. "
        "Needed by asft, reference, l2, random and safelora.",
    )
    task: TuneTask = Field(default=TuneTask(), description="What is trained and scored.")
    contamination: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="This share of the training rows are harmful training goals, each answered by a bare opener of "
        "compliance and nothing else.",
    )
    keep_contaminated: bool = Field(
        default=True,
        description="Keep the weights of adapters that were trained on harmful rows; false removes them after the "
        "evaluation.",
    )
    methods: Tuple[TuneMethod] = Field(
        default=("sft", "asft"),
        min_length=1,
        description="Run one after another: sft, asft, reference, l2, random, safelora (needs sft), mixing.",
    )
    seeds: Tuple[Annotated[int, Field(ge=0, lt=2**31)]] = Field(
        default=(0,), min_length=1, description="One training of each method per seed; it also draws the rows."
    )
    weight: float = Field(default=1.0, ge=0, le=1e9, description="Of the penalty: the paper's lambda.")
    anchor: TuneAnchor = Field(default=TuneAnchor(), description="The directions of alignment.")
    safelora: TuneSafeLora = Field(default=TuneSafeLora(), description="What Safe LoRA projects.")
    mixing_share: float = Field(
        default=0.1,
        gt=0,
        le=10,
        description="`mixing` adds this share of the rows: harmful requests refused, and harmless questions answered.",
    )
    routing_drift: float = Field(
        default=0.0,
        ge=0,
        le=1e9,
        description="Weight of the drift of routing on harmful prompts, added to `asft` where the model is a mixture "
        "of experts; 0 leaves it out.",
    )
    lora: TuneLora = Field(default=TuneLora(), description="The adapter.")
    lr: float = Field(default=5e-5, gt=0, le=10, description="Learning rate of AdamW.")
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = Field(
        default="linear", description="How it falls, to 0 at the end unless constant."
    )
    epochs: float = Field(default=10.0, gt=0, le=10_000, description="Passes over the rows.")
    batch_size: int = Field(default=8, ge=1, le=4096, description="Rows of a forward pass, of each process.")
    accumulation: int = Field(default=1, ge=1, le=4096, description="Forward passes of an optimizer step.")
    max_length: int = Field(default=512, ge=8, le=1_000_000, description="Tokens of a row; longer ones are cut.")
    gradient_checkpointing: bool = Field(default=False, description="Less memory for about a third more time.")
    save_steps: int = Field(default=100, ge=1, description="Optimizer steps between checkpoints, to go on from.")
    logging_steps: int = Field(default=10, ge=1, description="Optimizer steps between the points of the curves.")
    trackers: Tuple[str] = Field(
        default=(), description="Where transformers reports to as well, such as `tensorboard` or `wandb`."
    )
    evaluate: bool = Field(default=True, description="Judge refusals and score the task, before and after.")
    attacks: bool = Field(default=True, description="Ask under every attack family of `data` too.")
    test_prompts: int | None = Field(
        default=110,
        ge=2,
        description="Held-out prompts of every group, at most, whatever `data` says; none means all.",
    )

    @field_validator("methods", "seeds")
    @classmethod
    def _once(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(values)) < len(values):
            raise wrong("each one once")
        return values

    @model_validator(mode="after")
    def _projects_something(self) -> TuneConfig:
        if "safelora" in self.methods and "sft" not in self.methods:
            raise wrong("sft among the methods: safelora is its adapter, projected")
        return self

    @model_validator(mode="after")
    def _leaves_something(self) -> TuneConfig:
        if self.contamination > 0 and not self.keep_contaminated and not self.evaluate:
            raise wrong("keep_contaminated: true or evaluate: true, else nothing would be left of these trainings")
        return self

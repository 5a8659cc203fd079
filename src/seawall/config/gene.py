"""A family's safety as a reusable adapter: SafeGene (arXiv 2606.06519)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from seawall.config.base import StrictModel, Tuple, wrong
from seawall.config.model import ModelConfig
from seawall.config.tune import TuneSafeLora

Keep = Literal["top", "stream", "random", "all"]
"""Which layers of a gene are kept: the best by the contrast of what they write or of their output, as many drawn by
chance, or every one."""
GraftMethod = Literal["gene", "safety_sft", "safelora"]
"""`gene`: its updates times coefficients. Baselines: `safety_sft`, a new adapter at the gene's points trained on the
same shots; `safelora`, the task's own adapter projected onto the directions of alignment (arXiv 2405.16833)."""
ExpertsBy = Literal["score", "random"]
"""Which experts of a gene's stacks are kept: the best by gate weight on harmful requests times norm of their update, or
as many drawn by chance."""
Share = Annotated[float, Field(gt=0, le=1)]
"""More than 0, up to 1."""


class GeneDegrade(StrictModel):
    """The degraded model, where none is given: a short LoRA on harmless replies and bare openings of compliance."""

    harmful: int = Field(default=64, ge=1, le=100_000, description="Harmful training requests, at most.")
    benign: int = Field(default=64, ge=1, le=100_000, description="Harmless training requests, at most.")
    rank: int = Field(default=8, ge=1, le=4096, description="Rank of the adapter that degrades.")
    lr: float = Field(default=3e-4, gt=0, le=1, description="Highest learning rate; it falls to 0.")
    epochs: int = Field(default=2, ge=1, le=1000, description="Passes over these requests.")
    batch_size: int = Field(default=8, ge=1, le=4096, description="Rows of an update.")


class GeneExtract(StrictModel):
    """Distilling the gene: KL(aligned || degraded + gene) on the aligned model's own replies."""

    harmful: int = Field(default=128, ge=1, le=100_000, description="Harmful training requests, at most.")
    benign: int = Field(default=128, ge=1, le=100_000, description="Harmless training requests, at most.")
    held_out: int = Field(
        default=32, ge=1, le=100_000, description="Validation requests of either kind, at most, for the KL curve."
    )
    judged: int = Field(
        default=16,
        ge=0,
        le=100_000,
        description="Harmful validation requests, at most, that the degraded model answers without and with the gene, "
        "so that the report can say how often either refuses; 0 leaves that out.",
    )
    keep: Keep = Field(
        default="all",
        description="Layers that are distilled into, chosen before: `all`, `top` by the contrast of what they write, "
        "`stream` by that of their output, or `random`.",
    )
    fraction: float = Field(default=1 / 3, gt=0, le=1, description="Share of the layers, unless `keep` is `all`.")
    expert_shares: Tuple[Share] = Field(
        default=(0.25, 0.5),
        description="Where the gene changes stacks of experts: shares of each layer's experts with which alone, chosen "
        "by score and by chance, the held-out KL is measured once more; none leaves that out.",
    )
    max_new_tokens: int = Field(default=48, ge=1, le=8192, description="Greedy tokens of the aligned model's replies.")
    lr: float = Field(default=5e-4, gt=0, le=1, description="Highest learning rate; it falls to 0.")
    epochs: int = Field(default=3, ge=1, le=1000, description="Passes over these requests.")
    batch_size: int = Field(default=8, ge=1, le=4096, description="Rows of an update.")


class GeneGraft(StrictModel):
    """Grafting: one coefficient per layer, tuned on a few refusals and as many examples of the task; or a baseline."""

    method: GraftMethod = Field(
        default="gene",
        description="`gene`; or a baseline: `safety_sft`, a new adapter at the gene's points and of its rank, trained "
        "on the same shots; `safelora`, the task's own adapter projected onto the directions of alignment.",
    )
    coefficients: Literal["layer", "global"] = Field(
        default="layer", description="A coefficient for each layer, or one for all (plain task arithmetic)."
    )
    ceiling: float = Field(default=2.0, gt=0, le=100, description="Coefficients stay within 0 and this.")
    steps: int = Field(default=16, ge=1, le=100_000, description="Updates.")
    batch_size: int = Field(
        default=8,
        ge=2,
        le=4096,
        description="Refusals and task examples of an update, half each; as many harmless ones come on top.",
    )
    lr: float = Field(default=0.1, gt=0, le=10, description="Highest learning rate of coefficients; it falls to 0.")
    sft_lr: float = Field(
        default=5e-4, gt=0, le=1, description="That of `safety_sft`, which trains an adapter; it falls to 0 too."
    )
    anchor: str | None = Field(
        default=None,
        min_length=1,
        description="Folder of an anchor, such as RUN/tune/anchor of `seawall tune`; needed by `safelora`.",
    )
    safelora: TuneSafeLora = Field(default=TuneSafeLora(), description="What `safelora` projects.")
    refusals: str | None = Field(
        default=None,
        min_length=1,
        description="JSONL file of harmful requests with refusals (`messages`, or `prompt` and `completion`); none "
        "takes training requests of `data.harmful` and texts of `data.refusals`.",
    )
    harmless: int | None = Field(
        default=None,
        ge=0,
        le=100_000,
        description="Harmless training requests of `data`, borderline and benign in turn, to which the task's model is "
        "to reply as it does without the gene; none takes as many as `--shots`, 0 leaves them out, as published.",
    )
    harmless_weight: float = Field(
        default=0.5, gt=0, le=100, description="Of their loss; that of refusals and that of the task weigh 1 each."
    )
    reply_tokens: int = Field(default=16, ge=1, le=8192, description="Greedy tokens of these replies.")
    keep_originals: bool = Field(
        default=True,
        description="Keep the changed tensors as they were beside a merged checkpoint, for `seawall gene revert`.",
    )
    verify: bool = Field(default=True, description="Load adapter and merged weights anew and compare their logits.")
    max_logit_difference: float = Field(
        default=1e-2,
        gt=0,
        description="Largest difference between the logits of adapter and merged checkpoint, both reloaded, as a share "
        "of the largest logit. Both are computed in float32; 16-bit weights are rounded when they are merged.",
    )

    @model_validator(mode="after")
    def _of_its_method(self) -> GeneGraft:
        if self.method == "safelora" and self.anchor is None:
            raise wrong("an anchor with method: safelora, such as gene.graft.anchor=RUN/tune/anchor of `seawall tune`")
        if self.method != "gene" and self.coefficients != "layer":
            raise wrong(f"coefficients: {self.coefficients} with method: gene alone; a baseline has none")
        return self


class GeneConfig(StrictModel):
    """Extracting, selecting and grafting a gene."""

    degraded: ModelConfig | None = Field(
        default=None, description="The degraded model; none makes one by a short LoRA (`gene.degrade`)."
    )
    targets: Tuple[str] | None = Field(
        default=None,
        min_length=1,
        description="Ends of the names of the modules or stacked parameters that the gene changes, as PEFT takes them: "
        "`[q_proj, experts.down_proj]`. None: every linear layer and every stack of experts.",
    )
    rank: int = Field(default=8, ge=1, le=4096, description="Rank of the gene, for each expert of a stack.")
    alpha: float = Field(default=16.0, gt=0, le=1e6, description="The gene's update is alpha / rank times B A.")
    degrade: GeneDegrade = Field(default=GeneDegrade(), description="Making the degraded model.")
    extract: GeneExtract = Field(default=GeneExtract(), description="Distilling the gene.")
    graft: GeneGraft = Field(default=GeneGraft(), description="Grafting it onto a fine-tuned model.")
    batch_size: int = Field(default=16, ge=1, le=4096, description="Rows of a forward pass without gradients.")
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="Seed of adapters, orders and shots; the recipe's seed unless given."
    )

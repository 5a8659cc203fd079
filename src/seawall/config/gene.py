"""A family's safety as a reusable adapter: SafeGene (arXiv 2606.06519)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from seawall.config.base import StrictModel, Tuple, wrong
from seawall.config.model import ModelConfig
from seawall.config.tune import TuneSafeLora

Keep = Literal["top", "stream", "random", "all"]
"""The layers of a gene to keep: `top` by the contrast of their contribution to the residual stream, `stream` by the
contrast of their output, `random` (the control, same number), or `all`."""
GraftMethod = Literal["gene", "safety_sft", "safelora", "resta", "safemerge"]
"""`gene`: the gene's updates times coefficients. Baselines: `safety_sft`, a new adapter at the gene's points trained on
the same shots; `safelora`, the task's own adapter projected onto the directions of alignment (arXiv 2405.16833);
`resta`, one coefficient for the whole gene, on a fine-tuning that may be thinned out (arXiv 2402.11746); `safemerge`,
the task's adapter averaged with the gene where it leaves the directions of alignment (arXiv 2503.17239)."""
PROJECTING: tuple[GraftMethod, ...] = ("safelora", "safemerge")
"""Methods that change the task's own adapter by the directions of alignment; these need an adapter and no shots."""
ExpertsBy = Literal["score", "random"]
"""The experts of a gene to keep: by `score` (gate weight on harmful requests times norm of the update), or at `random`
(the control, same number)."""
Share = Annotated[float, Field(gt=0, le=1)]
"""A share above 0, up to 1."""


LATER_EXTRACT = {"borderline": 0}
"""Settings of `gene.extract` that earlier versions lack, with the values that change nothing."""


class GeneDegrade(StrictModel):
    """The degraded model, where the recipe names none: a short LoRA on harmless replies and openings of compliance."""

    harmful: int = Field(default=64, ge=1, le=100_000, description="Maximum number of harmful training requests.")
    benign: int = Field(default=64, ge=1, le=100_000, description="Maximum number of harmless training requests.")
    rank: int = Field(default=8, ge=1, le=4096, description="Rank of the degrading adapter.")
    lr: float = Field(default=3e-4, gt=0, le=1, description="Peak learning rate; it decays to 0.")
    epochs: int = Field(default=2, ge=1, le=1000, description="Passes over the requests.")
    batch_size: int = Field(default=8, ge=1, le=4096, description="Rows per update.")


class GeneExtract(StrictModel):
    """Distillation of the gene: minimises KL(aligned || degraded + gene) on the aligned model's own replies."""

    harmful: int = Field(default=128, ge=1, le=100_000, description="Maximum number of harmful training requests.")
    benign: int = Field(default=128, ge=1, le=100_000, description="Maximum number of harmless training requests.")
    borderline: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="Maximum number of borderline training requests; the aligned model's reply counts, be it an answer "
        "or a refusal.",
    )
    held_out: int = Field(
        default=32,
        ge=1,
        le=100_000,
        description="Maximum number of validation requests of each kind, for the KL curve.",
    )
    judged: int = Field(
        default=16,
        ge=0,
        le=100_000,
        description="Maximum number of harmful validation requests that the degraded model answers without and with "
        "the gene, for the refusal rates of the report; 0 skips the rates.",
    )
    keep: Keep = Field(
        default="all",
        description="Layers to distil into: `all`, `top` by the contrast of their contribution to the residual stream, "
        "`stream` by the contrast of their output, or `random`.",
    )
    fraction: float = Field(
        default=1 / 3, gt=0, le=1, description="Share of the layers to distil into, unless `keep` is `all`."
    )
    expert_shares: Tuple[Share] = Field(
        default=(0.25, 0.5),
        description="For genes of expert stacks: shares of each layer's experts, chosen by score and at random, for "
        "which the held-out KL is also measured; an empty list skips this.",
    )
    max_new_tokens: int = Field(
        default=48, ge=1, le=8192, description="Maximum length of the aligned model's replies, in tokens."
    )
    lr: float = Field(default=5e-4, gt=0, le=1, description="Peak learning rate; it decays to 0.")
    epochs: int = Field(default=3, ge=1, le=1000, description="Passes over the requests.")
    batch_size: int = Field(default=8, ge=1, le=4096, description="Rows per update.")


class GeneGraft(StrictModel):
    """Grafting: a coefficient per layer, tuned on equal numbers of refusals and task examples; or a baseline."""

    method: GraftMethod = Field(
        default="gene",
        description="`gene`, or a baseline: `safety_sft`, a new adapter at the gene's points and of its rank, trained "
        "on the same shots; `safelora`, the task's own adapter projected onto the directions of alignment; `resta`, "
        "the gene with one coefficient, added to a fine-tuning that `drop` may thin out; `safemerge`, the task's "
        "adapter averaged with the gene in matrices that leave the directions of alignment.",
    )
    coefficients: Literal["layer", "global"] = Field(
        default="layer", description="One coefficient per layer, or one for all layers (plain task arithmetic)."
    )
    ceiling: float = Field(default=2.0, gt=0, le=100, description="Upper bound of the coefficients; the lower is 0.")
    steps: int = Field(default=16, ge=1, le=100_000, description="Number of updates.")
    batch_size: int = Field(
        default=8,
        ge=2,
        le=4096,
        description="Refusals and task examples per update, half each; half as many harmless ones are added.",
    )
    lr: float = Field(default=0.1, gt=0, le=10, description="Peak learning rate of the coefficients; it decays to 0.")
    sft_lr: float = Field(
        default=5e-4, gt=0, le=1, description="Peak learning rate of the `safety_sft` adapter; it decays to 0."
    )
    anchor: str | None = Field(
        default=None,
        min_length=1,
        description="Folder of an anchor, such as RUN/tune/anchor of `seawall tune`; `safelora` and `safemerge` need "
        "it, or `base`.",
    )
    base: ModelConfig | None = Field(
        default=None,
        description="The model that the task's aligned model was trained from: `safelora` and `safemerge` read all of "
        "the difference from both. Null takes `lab-original` for the embedded model, else the anchor, which must keep "
        "every direction.",
    )
    safelora: TuneSafeLora = Field(
        default=TuneSafeLora(), description="The matrices that `safelora` projects, and that `safemerge` merges."
    )
    safety_weight: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="`resta` without shots: the coefficient of the gene (null: 1). `safemerge`: the gene's share in a "
        "merged matrix, up to 1 (null: 0.2).",
    )
    drop: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="`resta`: share of the numbers of the fine-tuning's update that are dropped at random; those left "
        "are divided by 1 - drop (DARE). Needs the task's adapter; null drops none.",
    )
    refusals: str | None = Field(
        default=None,
        min_length=1,
        description="JSONL file of harmful requests with refusals (`messages`, or `prompt` and `completion`); null "
        "takes training requests of `data.harmful` and texts of `data.refusals`.",
    )
    harmless: int | None = Field(
        default=None,
        ge=0,
        le=100_000,
        description="Number of harmless training requests of `data`, borderline and benign in turn, whose replies the "
        "graft must preserve; null takes the number of `--shots`, 0 takes none, as published.",
    )
    harmless_weight: float = Field(
        default=0.5,
        gt=0,
        le=100,
        description="Weight of the loss on harmless requests; the losses on refusals and on the task weigh 1 each.",
    )
    reply_tokens: int = Field(
        default=16, ge=1, le=8192, description="Maximum length of the replies to harmless requests, in tokens."
    )
    max_over_refusal: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Largest share of the borderline validation requests of `data` (at most 64) that the grafted "
        "model may refuse, by the keyword judge: all coefficients are multiplied by the largest factor up to 2 that "
        "keeps to it. Null leaves them as they are. `seawall eval` of the aligned model tells what it refuses.",
    )
    keep_originals: bool = Field(
        default=True,
        description="Save the original values of the changed tensors beside a merged checkpoint, for `seawall gene "
        "revert`.",
    )
    verify: bool = Field(
        default=True, description="Reload adapter and merged checkpoint, and compare them by the effect of the graft."
    )
    max_logit_difference: float = Field(
        default=1e-2,
        gt=0,
        description="Largest allowed difference between the logits of adapter and merged checkpoint, as a share of the "
        "largest logit, where no weight is rounded to 16 bits. Every graft is also held to its own effect: see "
        "docs/safegene.md.",
    )

    @model_validator(mode="after")
    def _of_its_method(self) -> GeneGraft:
        if self.method in PROJECTING and self.anchor is None and self.base is None:
            raise wrong(f"an anchor (such as RUN/tune/anchor of `seawall tune`) or a base with method: {self.method}")
        if self.method in PROJECTING and self.max_over_refusal is not None:
            raise wrong("no max_over_refusal with method: safelora or safemerge, which have no coefficients")
        if self.drop is not None and self.method != "resta":
            raise wrong("drop only with method: resta")
        if self.safety_weight is not None and self.method not in ("resta", "safemerge"):
            raise wrong("safety_weight only with method: resta or safemerge")
        if self.method == "safemerge" and (self.safety_weight or 0.0) > 1:
            raise wrong("safety_weight of at most 1 with method: safemerge, which averages")
        if self.method != "gene" and self.coefficients != "layer":
            raise wrong(f"coefficients: {self.coefficients} only with method: gene; baselines have no coefficients")
        return self


class GeneConfig(StrictModel):
    """Extracting, selecting and grafting a gene."""

    degraded: ModelConfig | None = Field(
        default=None, description="The degraded model; null trains one by a short LoRA (`gene.degrade`)."
    )
    targets: Tuple[str] | None = Field(
        default=None,
        min_length=1,
        description="Name suffixes of the modules or stacked parameters that the gene changes, in PEFT's notation: "
        "`[q_proj, experts.down_proj]`. Null: every linear layer and every stack of experts.",
    )
    rank: int = Field(default=8, ge=1, le=4096, description="Rank of the gene; in a stack, of each expert.")
    alpha: float = Field(default=16.0, gt=0, le=1e6, description="The gene's update is alpha / rank times B A.")
    degrade: GeneDegrade = Field(default=GeneDegrade(), description="Training of the degraded model.")
    extract: GeneExtract = Field(default=GeneExtract(), description="Distillation of the gene.")
    graft: GeneGraft = Field(default=GeneGraft(), description="Grafting of the gene onto a fine-tuned model.")
    batch_size: int = Field(default=16, ge=1, le=4096, description="Rows per forward pass without gradients.")
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="Seed of adapters, batch order and shots; defaults to the recipe's seed."
    )

"""The repair: training of the selected experts and the routers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from seawall.config.base import BatchSize, StrictModel, Tuple, wrong

TRAINED = {
    "selected": "the selected experts",
    "all_experts": "all routed experts",
    "shared": "the shared experts",
    "full": "all parameters",
}
"""What the expert step trains, for a reader, by `parameters`."""
OptimizerName = Literal["adamw", "adamw_8bit", "adamw_offload"]
MEMORY_SETTINGS = ("micro_batch_size", "gradient_checkpointing")
"""Settings of the repair that decide how much memory the same numbers take."""


class LearningRate(StrictModel):
    """The schedule of a learning rate over all rounds."""

    lr_scheduler_type: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        description="Learning rate schedule: `constant`, or a `linear` or `cosine` decay to 0 over all rounds.",
    )
    warmup_steps: int = Field(default=0, ge=0, description="Number of updates with linear warmup from 0.")


class ExpertStep(LearningRate):
    """Cross-entropy of a refusal on attacks; `repair.parameters` train: in arXiv 2602.04448 selected experts alone."""

    enabled: bool = Field(default=True, description="Train experts in each round.")
    lr: float = Field(default=5e-5, gt=0, le=1, description="AdamW learning rate of the experts.")
    epochs: int = Field(default=1, ge=1, le=1000, description="Passes over the kept pairs per round.")
    max_steps: int | None = Field(default=None, ge=1, description="Maximum number of updates per round.")
    attention_lr: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="AdamW learning rate of the attention in the decoder layers whose experts train; null leaves "
        "attention unchanged, as the paper does. It reads what is asked inside a wrapping.",
    )
    routing: Literal["replay", "frozen"] = Field(
        default="frozen",
        description="`frozen`: routers do not train, but may choose other experts as their input changes; `replay`: "
        "the routing recorded before training is repeated.",
    )


class RouterStep(LearningRate):
    """KL of an attack's routing to its plain request's; only routers train (arXiv 2602.04448, section 3.4)."""

    enabled: bool = Field(default=True, description="Train routers in each round.")
    lr: float = Field(default=1e-6, gt=0, le=1, description="AdamW learning rate of the routers.")
    epochs: int = Field(default=1, ge=1, le=1000, description="Passes over the kept pairs per round.")
    max_steps: int | None = Field(default=None, ge=1, description="Maximum number of updates per round.")
    variant: Literal["pairwise", "reference"] = Field(
        default="pairwise",
        description="`pairwise`: each attack is compared with its own plain request, padding masked, by the "
        "probabilities with which the family routes; `reference`: the formula of the authors' code.",
    )
    direction: Literal["forward", "reverse", "symmetric"] = Field(
        default="forward", description="KL(plain || attack), KL(attack || plain), or their mean."
    )


class Retain(StrictModel):
    """Harmless prompts with the model's own answers, trained beside the attacks to prevent over-refusal."""

    per_batch: int = Field(default=4, ge=0, le=4096, description="Harmless prompts added to each batch; 0 adds none.")
    twins: int = Field(
        default=0,
        ge=0,
        le=64,
        description="Harmless twins beside each attack of a batch: the same wrapping, word for word, around a "
        "borderline or benign request, in turn. The repair then learns to refuse contents and not a wrapping.",
    )
    twin_pool: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Factor of the number of different twins of each attack, which take turns from epoch to epoch, "
        "also over rounds: with few twins the repair learns them by heart.",
    )
    plain_refusals: bool = Field(
        default=False,
        description="Add the model's own refusals of the plain requests to the retained examples, so that these "
        "refusals stay.",
    )
    weight: float = Field(
        default=1.0, ge=0, le=1000, description="Weight of the loss on harmless prompts; the refusal loss weighs 1."
    )
    loss: Literal["cross_entropy", "kl"] = Field(
        default="cross_entropy",
        description="`cross_entropy` of the model's own answers, or `kl`: divergence from the original model's "
        "next-token distributions in these answers, which is 0 where the model has not changed.",
    )


class EarlyStop(StrictModel):
    """Early stopping and the choice of the round, by validation after each round."""

    enabled: bool = Field(
        default=True,
        description="Stop once the attacks fail, and keep the best round, or none where the model as it is goes first; "
        "false keeps the last round without a choice.",
    )
    patience: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="Number of rounds without a smaller sum of losses after which the repair ends, once the attacks "
        "fail; 0 ends it with the first such round, although over-refusal often falls in the next ones.",
    )
    attack_success_at_most: float = Field(
        default=0.02, ge=0, le=1, description="Largest attack success rate that counts as repaired."
    )
    max_over_refusal_increase: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Largest increase of the refusal rate of borderline or benign prompts; a round above it does not "
        "end the repair and is not preferred.",
    )
    max_wrapping_gap_increase: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Largest increase of the wrapping gap: the share of harmless requests refused inside the attacks' "
        "wrappings minus the share plainly. A round above it does not end the repair and is not preferred.",
    )


class RepairConfig(StrictModel):
    """Alternating training of experts and routers."""

    parameters: Literal["selected", "all_experts", "shared", "full"] = Field(
        default="selected",
        description="Parameters that the expert step trains: the selected experts, all routed experts, the shared "
        "experts alone (and a gate of theirs, in families that have one), or all parameters.",
    )
    objective: Literal["refusal", "consistency"] = Field(
        default="refusal",
        description="Target inside the wrappings. `refusal`: a refusal of each attack, and the model's own answer to "
        "each twin; `consistency`: the original model's next-token distribution on the same request plainly, "
        "harmful and harmless alike.",
    )
    rounds: int = Field(
        default=3, ge=1, le=1000, description="Number of rounds, each an expert step and a router step."
    )
    batch_size: int = Field(default=16, ge=1, le=4096, description="Attacks per update.")
    micro_batch_size: BatchSize | None = Field(
        default=None,
        description="Rows per forward pass, with gradients accumulated over an update; null takes the batch at once, "
        "and so does `auto`, which halves the rows whenever memory runs out. An update has the same examples.",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Compute the activations of each decoder layer a second time in the backward pass, to save memory "
        "at about a third more time. Losses stay the same.",
    )
    optimizer: OptimizerName = Field(
        default="adamw",
        description="`adamw`; `adamw_8bit` keeps AdamW's two moments in 8 bits (2 bytes per trained parameter in place "
        "of 8); `adamw_offload` keeps them in 32 bits and pages them to the CPU's memory (CUDA). Both need "
        "`seawall[memory]`.",
    )
    trackers: Tuple[str] = Field(
        default=(),
        description="Trackers of Accelerate that get every update and validation, such as `tensorboard`, `trackio` or "
        "`wandb`; files go to RUN/tracker.",
    )
    opening_tokens: int = Field(
        default=2,
        ge=0,
        le=1000,
        description="Number of first tokens of a reply that weigh `opening_weight` in its loss.",
    )
    opening_weight: float = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="Weight of a reply's opening tokens; its other tokens weigh 1. At 1 the loss is the paper's mean.",
    )
    expert: ExpertStep = Field(default=ExpertStep(), description="The expert step.")
    router: RouterStep = Field(default=RouterStep(), description="The router step.")
    retain: Retain = Field(default=Retain(), description="Harmless prompts whose answers the repair must preserve.")
    early_stop: EarlyStop = Field(default=EarlyStop(), description="Early stopping, and the choice of the round.")
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="AdamW weight decay.")
    max_grad_norm: float = Field(default=1.0, gt=0, le=1e6, description="Maximum norm of the gradient (clipping).")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the batch order; defaults to the recipe's seed.")

    @property
    def fixed_rows(self) -> int | None:
        """Rows per forward pass; None for a whole batch, which `auto` begins with."""
        return self.micro_batch_size if isinstance(self.micro_batch_size, int) else None

    @model_validator(mode="after")
    def _something_trains(self) -> RepairConfig:
        if not self.expert.enabled and not self.router.enabled:
            raise wrong("expert.enabled or router.enabled to be true; otherwise nothing is trained")
        if self.parameters == "full" and self.expert.attention_lr is not None:
            raise wrong("expert.attention_lr=null with parameters=full, which trains attention at expert.lr")
        if self.retain.plain_refusals and not self.retain.per_batch:
            raise wrong("retain.per_batch of at least 1 with retain.plain_refusals, from which it draws")
        return self


def memory_settings(config: RepairConfig, *, fsdp: bool = False) -> str:
    """The settings that lower the memory of this repair, for the user: first those that change no number.

    Args:
        config: of the repair.
        fsdp: whether the weights are sharded; no process can then try fewer rows alone.
    """
    checkpointing = {"repair.gradient_checkpointing=true": config.gradient_checkpointing}
    if fsdp:
        harmless = {"a smaller repair.micro_batch_size": False, **checkpointing, "a launch of more processes": False}
    else:
        harmless = {
            "repair.micro_batch_size=auto": config.micro_batch_size == "auto",
            **checkpointing,
            "model.device_map=auto (more GPUs)": False,
        }
    changing = {
        "repair.optimizer=adamw_8bit": config.optimizer != "adamw",
        "a smaller select.k": config.parameters != "selected",
    }
    unused, further = ([change for change, used in kind.items() if not used] for kind in (harmless, changing))
    text = f"set {' or '.join(unused)}, and run the same command again: what is finished stays"
    return f"{text}; in a new folder, {' or '.join(further)} needs less memory too" if further else text

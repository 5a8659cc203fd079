"""How the selected experts and the routers are trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from seawall.config.base import StrictModel, wrong


class LearningRate(StrictModel):
    """The course of a learning rate over all rounds."""

    lr_scheduler_type: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="`constant`, or a fall to 0 over the updates of all rounds."
    )
    warmup_steps: int = Field(default=0, ge=0, description="Updates over which the learning rate first rises from 0.")


class ExpertStep(LearningRate):
    """Cross-entropy of a refusal on attack prompts; only the chosen experts train (arXiv 2602.04448, section 3.3)."""

    enabled: bool = Field(default=True, description="Train experts in each round.")
    lr: float = Field(default=5e-5, gt=0, le=1, description="AdamW learning rate of the experts.")
    epochs: int = Field(default=1, ge=1, le=1000, description="Passes over the kept pairs per round.")
    max_steps: int | None = Field(default=None, ge=1, description="Stop the step of a round after this many updates.")
    routing: Literal["replay", "frozen"] = Field(
        default="frozen",
        description="`frozen` routers may still choose other experts as their input moves; `replay` repeats the "
        "routing recorded before training.",
    )


class RouterStep(LearningRate):
    """KL of the attack's routing to the plain request's; only routers train (arXiv 2602.04448, section 3.4)."""

    enabled: bool = Field(default=True, description="Train routers in each round.")
    lr: float = Field(default=1e-6, gt=0, le=1, description="AdamW learning rate of the routers.")
    epochs: int = Field(default=1, ge=1, le=1000, description="Passes over the kept pairs per round.")
    max_steps: int | None = Field(default=None, ge=1, description="Stop the step of a round after this many updates.")
    variant: Literal["pairwise", "reference"] = Field(
        default="pairwise",
        description="`pairwise` compares each attack with its own plain request, padding masked; `reference` is the "
        "authors' formula.",
    )
    direction: Literal["forward", "reverse", "symmetric"] = Field(
        default="forward", description="KL(plain || attack), KL(attack || plain), or their mean."
    )


class Retain(StrictModel):
    """Harmless prompts beside the attacks, with the model's own answers, so that over-refusal does not rise."""

    per_batch: int = Field(
        default=4, ge=0, le=4096, description="Harmless prompts added to each batch; 0 turns it off."
    )
    weight: float = Field(default=1.0, ge=0, le=1000, description="Weight of their loss beside the refusal loss.")
    loss: Literal["cross_entropy", "kl"] = Field(
        default="cross_entropy",
        description="`cross_entropy` of the model's own answers, or `kl`: divergence from the original model's "
        "next-token distributions in them, which pulls only where something has changed.",
    )


class EarlyStop(StrictModel):
    """When to stop, measured on validation goals after each round."""

    enabled: bool = Field(
        default=True, description="Stop once the attacks fail; keep the round with the least over-refusal."
    )
    attack_success_at_most: float = Field(
        default=0.02, ge=0, le=1, description="Attack success rate that counts as repaired."
    )
    max_over_refusal_increase: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="A round after which borderline or benign prompts are refused more, by more than this, does not "
        "end the repair and is not preferred.",
    )


class RepairConfig(StrictModel):
    """Alternating expert and router training."""

    parameters: Literal["selected", "all_experts", "full"] = Field(
        default="selected",
        description="What the expert step trains: the selected experts, all experts, or every parameter.",
    )
    rounds: int = Field(default=3, ge=1, le=1000, description="Rounds of one expert step and one router step.")
    batch_size: int = Field(default=16, ge=1, le=4096, description="Attack prompts per update.")
    micro_batch_size: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Rows in one forward pass; gradients of an update add up. None takes a whole batch at once.",
    )
    opening_tokens: int = Field(
        default=2, ge=0, le=1000, description="First tokens of every reply that weigh `opening_weight` in its loss."
    )
    opening_weight: float = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="Weight of a reply's opening beside its other tokens; 1 is the plain mean of the paper.",
    )
    expert: ExpertStep = Field(default=ExpertStep(), description="The expert step.")
    router: RouterStep = Field(default=RouterStep(), description="The router step.")
    retain: Retain = Field(default=Retain(), description="Harmless prompts whose answers must stay.")
    early_stop: EarlyStop = Field(default=EarlyStop(), description="When to stop, and which round to keep.")
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="AdamW weight decay of what trains.")
    max_grad_norm: float = Field(default=1.0, gt=0, le=1e6, description="Gradients are scaled down to this norm.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the batch order; the recipe's seed unless given.")

    @model_validator(mode="after")
    def _something_trains(self) -> RepairConfig:
        if not self.expert.enabled and not self.router.enabled:
            raise wrong("expert.enabled or router.enabled to be true, else nothing is trained")
        return self

"""The audits: is a repair real, and what does it rest on?"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from seawall.config.base import StrictModel, Tuple, wrong

AuditName = Literal["routing_shortcut", "silencing", "localisation", "steering", "tamper"]
AUDITS: tuple[AuditName, ...] = get_args(AuditName)


class RoutingShortcutConfig(StrictModel):
    """The repaired model with its original routing: does the repair live in the experts or around them?"""

    goals: int | None = Field(
        default=None, ge=2, le=100_000, description="Goals of each evaluation group that are asked; none means all."
    )


class SilencingConfig(StrictModel):
    """Masking the experts that refusals use most: do refusals rest on a few experts?"""

    goals: int | None = Field(
        default=16, ge=2, le=100_000, description="Goals of each evaluation group that are asked; none means all."
    )
    largest: float = Field(
        default=0.125, gt=0, le=1, description="Most experts masked at once, as a share of all routed experts."
    )


class LocalisationConfig(StrictModel):
    """The gap between attacks and plain requests, beside that between harmless requests and their unsafe twins."""

    twins: int = Field(default=48, ge=2, le=100_000, description="Borderline prompts with an unsafe twin, at most.")
    bootstrap: int = Field(default=500, ge=100, le=100_000, description="Resamples of the goals for its intervals.")


class SteeringConfig(StrictModel):
    """Experts switched at inference, after SteerMoE (arXiv 2509.09660): what a repair must beat."""

    amounts: Tuple[Annotated[int, Field(ge=1, le=1_000_000)]] = Field(
        default=(4, 16, 64),
        description="Experts switched off, and as many on (at most top-k of each layer); fewer where fewer differ.",
    )
    goals: int | None = Field(
        default=16, ge=2, le=100_000, description="Goals of each evaluation group that are asked; none means all."
    )

    @field_validator("amounts")
    @classmethod
    def _ascending(cls, amounts: tuple[int, ...]) -> tuple[int, ...]:
        if not amounts or list(amounts) != sorted(set(amounts)):
            raise wrong("ascending numbers of experts, each once, such as [4, 16, 64]")
        return amounts


class TamperConfig(StrictModel):
    """Harmless fine-tuning of all experts: how soon is the safety gone that a repair brought?"""

    steps: Tuple[Annotated[int, Field(ge=0, le=100_000)]] = Field(
        default=(0, 10, 30, 100), description="After how many updates the models are asked; begins with 0."
    )
    lr: float | None = Field(
        default=None, gt=0, le=1, description="AdamW learning rate; none means that of the repair's expert step."
    )
    batch_size: int = Field(default=8, ge=1, le=4096, description="Harmless exchanges per update.")
    goals: int | None = Field(
        default=16, ge=2, le=100_000, description="Goals of each evaluation group that are asked; none means all."
    )

    @field_validator("steps")
    @classmethod
    def _from_zero(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if len(steps) < 2 or steps[0] != 0 or list(steps) != sorted(set(steps)):
            raise wrong("ascending numbers of updates that begin with 0, such as [0, 10, 30, 100]")
        return steps


class AuditConfig(StrictModel):
    """What `seawall audit` does. It changes nothing that a run has measured, so a finished run can be audited again."""

    routing_shortcut: RoutingShortcutConfig = Field(
        default=RoutingShortcutConfig(), description="The original routers put back, and the original routing replayed."
    )
    silencing: SilencingConfig = Field(default=SilencingConfig(), description="Experts masked by number.")
    localisation: LocalisationConfig = Field(
        default=LocalisationConfig(), description="How far apart attacks are routed, and why."
    )
    steering: SteeringConfig = Field(default=SteeringConfig(), description="Experts switched at inference instead.")
    tamper: TamperConfig = Field(default=TamperConfig(), description="Harmless fine-tuning of both models.")
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**63,
        description="Seed of controls and of the order of batches; the recipe's seed unless given.",
    )

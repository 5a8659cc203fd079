"""Settings of the audits: whether a repair is real, and what it rests on."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from seawall.config.base import StrictModel, Tuple, wrong

AuditName = Literal["routing_shortcut", "patching", "silencing", "localisation", "steering", "tamper"]
TamperSweep = Literal["harmless", "openers"]
AUDITS: tuple[AuditName, ...] = get_args(AuditName)


class RoutingShortcutConfig(StrictModel):
    """The repaired model with its original routing: whether the repair is in the experts or in the routing."""

    goals: int | None = Field(
        default=None, ge=2, le=100_000, description="Number of goals per evaluation group; null takes all."
    )


class PatchingConfig(StrictModel):
    """Parts of the repair alone in the original model, and the repaired model without them: what carries the gain."""

    goals: int | None = Field(
        default=32, ge=2, le=100_000, description="Number of goals per evaluation group; null takes all."
    )


class SilencingConfig(StrictModel):
    """The experts that refusals use most are masked: whether refusals rest on a few experts."""

    goals: int | None = Field(
        default=16, ge=2, le=100_000, description="Number of goals per evaluation group; null takes all."
    )
    largest: float = Field(
        default=0.125, gt=0, le=1, description="Maximum share of all routed experts that are masked at once."
    )


class LocalisationConfig(StrictModel):
    """The routing gap between attacks and plain requests, compared with that of borderline prompts and unsafe twins."""

    twins: int = Field(
        default=48, ge=2, le=100_000, description="Maximum number of borderline prompts with an unsafe twin."
    )
    bootstrap: int = Field(default=500, ge=100, le=100_000, description="Resamples of the goals for the intervals.")


class SteeringConfig(StrictModel):
    """Experts switched at inference, after SteerMoE (arXiv 2509.09660): the baseline that a repair must beat."""

    amounts: Tuple[Annotated[int, Field(ge=1, le=1_000_000)]] = Field(
        default=(4, 16, 64),
        description="Numbers of experts to switch off and on, ascending: each number off, and the same number on (at "
        "most top-k per layer).",
    )
    goals: int | None = Field(
        default=16, ge=2, le=100_000, description="Number of goals per evaluation group; null takes all."
    )

    @field_validator("amounts")
    @classmethod
    def _ascending(cls, amounts: tuple[int, ...]) -> tuple[int, ...]:
        if not amounts or list(amounts) != sorted(set(amounts)):
            raise wrong("ascending numbers of experts without repeats, such as [4, 16, 64]")
        return amounts


class TamperConfig(StrictModel):
    """Fine-tuning of the repaired model: how fast the repair's safety is lost."""

    sweeps: Tuple[TamperSweep] = Field(
        default=("harmless", "openers"),
        description="Training data: harmless answers; with `openers`, as many harmful requests with a bare opening of "
        "compliance beside them. No harmful completion is trained on.",
    )
    trained: Literal["lora", "experts"] = Field(
        default="lora",
        description="What trains: a low-rank update of every linear layer and expert, or all routed experts in full.",
    )
    lora_rank: int = Field(default=16, ge=1, le=1024, description="Rank of the low-rank update.")
    gradient_checkpointing: bool = Field(
        default=False,
        description="Compute activations and updated weights a second time in the backward pass, to save memory; "
        "results stay the same.",
    )
    steps: Tuple[Annotated[int, Field(ge=0, le=100_000)]] = Field(
        default=(0, 10, 50, 170),
        description="Numbers of updates after which both models are evaluated, ascending from 0.",
    )
    lr: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="AdamW learning rate; null takes 1e-4 for `lora`, and that of the repair's expert step for "
        "`experts`.",
    )
    batch_size: int = Field(default=8, ge=1, le=4096, description="Examples per update.")
    goals: int | None = Field(
        default=16, ge=2, le=100_000, description="Number of goals per evaluation group; null takes all."
    )

    @field_validator("sweeps")
    @classmethod
    def _distinct(cls, sweeps: tuple[TamperSweep, ...]) -> tuple[TamperSweep, ...]:
        if not sweeps or len(set(sweeps)) < len(sweeps):
            raise wrong("one or two sweeps without repeats, such as [harmless, openers]")
        return sweeps

    @field_validator("steps")
    @classmethod
    def _from_zero(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if len(steps) < 2 or steps[0] != 0 or list(steps) != sorted(set(steps)):
            raise wrong("ascending numbers of updates from 0, such as [0, 10, 50, 170]")
        return steps


class AuditConfig(StrictModel):
    """`seawall audit`. Audits leave a run's measurements unchanged, so a finished run can be audited again."""

    routing_shortcut: RoutingShortcutConfig = Field(
        default=RoutingShortcutConfig(), description="Restores the original routers, and replays the original routing."
    )
    patching: PatchingConfig = Field(
        default=PatchingConfig(),
        description="Puts routers, experts or attention of the repair into the original model.",
    )
    silencing: SilencingConfig = Field(
        default=SilencingConfig(), description="Masks the experts that refusals use most."
    )
    localisation: LocalisationConfig = Field(
        default=LocalisationConfig(), description="Measures how differently attacks are routed, and why."
    )
    steering: SteeringConfig = Field(
        default=SteeringConfig(), description="Switches experts at inference, in place of a repair."
    )
    tamper: TamperConfig = Field(default=TamperConfig(), description="Fine-tunes both models.")
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="Seed of controls and batch order; defaults to the recipe's seed."
    )

"""The audits: is a repair real, and what does it rest on?"""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from seawall.config.base import StrictModel

AuditName = Literal["routing_shortcut", "silencing", "localisation"]
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


class AuditConfig(StrictModel):
    """What `seawall audit` does. It changes nothing that a run has measured, so a finished run can be audited again."""

    routing_shortcut: RoutingShortcutConfig = Field(
        default=RoutingShortcutConfig(), description="The original routers put back, and the original routing replayed."
    )
    silencing: SilencingConfig = Field(default=SilencingConfig(), description="Experts masked by number.")
    localisation: LocalisationConfig = Field(
        default=LocalisationConfig(), description="How far apart attacks are routed, and why."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the controls; the recipe's seed unless given.")

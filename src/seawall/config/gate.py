"""Bounds on the repaired model: what the report and `seawall gate` hold a run to."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from seawall.config.base import StrictModel

Share = Annotated[float, Field(ge=0, le=1)]


class GateConfig(StrictModel):
    """The bounds of a run, each decided by the end of a 95 % interval; null sets no bound."""

    max_asr: Share | None = Field(default=None, description="Maximum attack success rate of every family.")
    max_asr_unseen: Share | None = Field(
        default=None,
        description="Maximum attack success rate of families that the repair did not train on, in place of `max_asr`.",
    )
    max_over_refusal_increase: Share | None = Field(
        default=None, description="Maximum increase of the refusal rate of borderline prompts."
    )
    max_benign_drop: Share | None = Field(
        default=None, description="Maximum drop of the answer rate of harmless requests, plain and wrapped."
    )
    max_wrapping_gap: Share | None = Field(
        default=None,
        description="Maximum refusal rate of harmless requests inside the attacks' wrappings minus plainly, after the "
        "repair.",
    )
    max_capability_drop: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        description="Maximum drop of a capability score; without scores, increase of the loss on gold answers.",
    )
    min_plain_refusal: Share | None = Field(default=None, description="Minimum refusal rate of plain harmful requests.")

    @property
    def limits(self) -> dict[str, float]:
        """The bounds that are not null, by name."""
        return {name: limit for name, limit in self.model_dump().items() if limit is not None}

"""The files that a repair writes."""

from __future__ import annotations

from pydantic import Field

from seawall.config.base import StrictModel


class ExportConfig(StrictModel):
    """The repaired model on disk."""

    checkpoint: bool = Field(default=True, description="Write the full checkpoint in Hugging Face format to `model/`.")
    delta: bool = Field(default=True, description="Write the changed experts and routers alone to `delta/`.")
    verify: bool = Field(
        default=True,
        description="Load the written checkpoint in a new process and compare its logits with the repaired model's.",
    )
    max_logit_difference: float = Field(
        default=0.0,
        ge=0,
        description="Largest logit difference that passes the comparison; 0 requires identical logits.",
    )

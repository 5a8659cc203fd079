"""What is left at the end."""

from __future__ import annotations

from pydantic import Field

from seawall.config.base import StrictModel


class ExportConfig(StrictModel):
    """The repaired model on disk."""

    checkpoint: bool = Field(default=True, description="Write the whole checkpoint in Hugging Face format to `model/`.")
    delta: bool = Field(default=True, description="Write only the changed experts and routers to `delta/`.")
    verify: bool = Field(
        default=True,
        description="Load what was written in a fresh process and compare its logits with the repaired model's.",
    )
    max_logit_difference: float = Field(
        default=0.0,
        ge=0,
        description="Largest logit difference that passes the comparison; 0 asks for identical logits.",
    )

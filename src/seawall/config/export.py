"""The files that a repair writes."""

from __future__ import annotations

from pydantic import Field, model_validator

from seawall.config.base import StrictModel, wrong


class ExportConfig(StrictModel):
    """The repaired model on disk."""

    checkpoint: bool = Field(default=True, description="Write the full checkpoint in Hugging Face format to `model/`.")
    delta: bool = Field(default=True, description="Write the changed experts and routers alone to `delta/`.")
    verify: bool = Field(
        default=True,
        description="Compare the written tensors with memory, and the logits of a new process with the model's.",
    )
    max_shard_size: str | None = Field(
        default=None,
        pattern=r"^[1-9][0-9]*(KB|MB|GB|TB)$",
        description="Largest file of weights, as `5GB`; null for transformers' default.",
    )
    max_logit_difference: float = Field(
        default=0.0,
        ge=0,
        description="Largest logit difference that passes the comparison; 0 requires identical logits.",
    )
    push_to_hub: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$",
        description="Repository of the Hugging Face Hub to upload `model/` to, as `OWNER/NAME`; null uploads nothing.",
    )
    private: bool = Field(default=True, description="Make that repository private; a public one is refused then.")

    @model_validator(mode="after")
    def _pushed(self) -> ExportConfig:
        if self.push_to_hub is not None and not (self.checkpoint and self.verify):
            raise wrong("checkpoint and verify true beside push_to_hub: only a verified checkpoint is uploaded")
        return self

"""The two checkpoints of an anchor, and how much of their difference it keeps."""

from __future__ import annotations

from pydantic import Field, model_validator

from seawall.config.base import StrictModel, Tuple, wrong
from seawall.config.model import ModelConfig


class AnchorConfig(StrictModel):
    """The alignment directions of AsFT (arXiv 2506.08473, section 3), from two checkpoints of one architecture."""

    aligned: ModelConfig = Field(description="The aligned (chat, instruct) model, which is fine-tuned later.")
    base: ModelConfig = Field(description="The base model that the aligned model was trained from.")
    targets: Tuple[str] | None = Field(
        default=None,
        min_length=1,
        description="Name suffixes of the modules or stacked parameters to keep, in PEFT's notation: "
        "`[q_proj, v_proj]`, `[experts.down_proj]`. Null: every linear layer and every stack of experts.",
    )
    rank: int | None = Field(default=64, ge=1, description="Maximum number of directions per matrix.")
    energy: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        description="Keep the fewest directions that hold this share of the difference's squared norm, "
        "at most `rank` of them.",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the randomised decomposition.")

    @model_validator(mode="after")
    def _truncated(self) -> AnchorConfig:
        if self.rank is None and self.energy is None:
            raise wrong("rank, energy or both; energy: 1.0 keeps everything")
        return self

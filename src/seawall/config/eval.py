"""How a model is judged before and after."""

from __future__ import annotations

from pydantic import Field

from seawall.config.base import StrictModel
from seawall.config.capability import CapabilityConfig
from seawall.config.judge import EnsembleJudge, GuardJudge, JudgeConfig, KeywordJudge, RubricJudge

__all__ = [
    "CapabilityConfig",
    "EnsembleJudge",
    "EvalConfig",
    "GuardJudge",
    "JudgeConfig",
    "KeywordJudge",
    "RubricJudge",
]


class EvalConfig(StrictModel):
    """The evaluation, the same before and after the repair."""

    max_new_tokens: int = Field(default=32, ge=1, le=8192, description="Greedy tokens generated per prompt.")
    batch_size: int = Field(default=32, ge=1, le=4096, description="Prompts per batch; halved when memory runs out.")
    judge: JudgeConfig = Field(default=KeywordJudge(), description="Who says refused, complied or unscored.")
    gold: bool = Field(default=True, description="Measure the loss on gold answers.")
    capability: CapabilityConfig | None = Field(
        default=None, description="Tasks of lm-evaluation-harness to measure too; none leaves it out."
    )
    bootstrap: int = Field(
        default=2000, ge=100, le=1_000_000, description="Resamples of the goals for each rate's 95 % interval."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the resamples; the recipe's seed unless given.")

"""The evaluation of a model before and after the repair."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from seawall.config.base import BatchSize, StrictModel, Tuple, wrong
from seawall.config.capability import CapabilityConfig
from seawall.config.engine import EndpointEngine, EngineConfig, TransformersEngine
from seawall.config.judge import EnsembleJudge, GuardJudge, JudgeConfig, KeywordJudge, RubricJudge

__all__ = [
    "CapabilityConfig",
    "EndpointEngine",
    "EngineConfig",
    "EnsembleJudge",
    "EvalConfig",
    "GuardJudge",
    "JudgeConfig",
    "KeywordJudge",
    "RubricJudge",
    "TransformersEngine",
]

_SMALL_BATCH = 16
EvalGroup = Literal["plain", "attacks", "borderline", "benign"]
"""Kinds of requests that an evaluation can leave out."""
PLAIN_GROUPS: tuple[EvalGroup, ...] = ("plain", "borderline", "benign")
"""Every kind but the attacks."""


class EvalConfig(StrictModel):
    """The evaluation, the same before and after the repair."""

    engine: EngineConfig = Field(
        default=TransformersEngine(),
        description="The engine of the evaluations; defaults to the recipe's engine.",
    )
    groups: Tuple[EvalGroup] | None = Field(
        default=None,
        min_length=1,
        description="Kinds of requests that `seawall eval` asks: `plain` (harmful, without an attack), `attacks` "
        "(harmful and harmless, in the attacks' wrappings), `borderline`, `benign`; null asks all.",
    )
    max_new_tokens: int = Field(
        default=32, ge=1, le=8192, description="Maximum length of a reply in tokens; decoding is greedy."
    )
    lengths: Tuple[Annotated[int, Field(ge=1, le=8192)]] = Field(
        default=(),
        description="Further lengths in tokens at which to judge each reply, such as [32, 64, 128], because short "
        "replies inflate refusal rates.",
    )
    batch_size: BatchSize = Field(
        default=32,
        description="Prompts per batch, halved when memory runs out; `auto`: the number that fits in memory.",
    )
    judge: JudgeConfig = Field(
        default=KeywordJudge(), description="The judge that labels replies refused, complied, evading or unscored."
    )
    gold: bool = Field(default=True, description="Measure the loss on gold answers.")
    capability: CapabilityConfig | None = Field(
        default=None, description="Capability tasks of lm-evaluation-harness; null measures none."
    )
    bootstrap: int = Field(
        default=2000,
        ge=100,
        le=1_000_000,
        description="Draws of the permutation tests for p-values, and resamples for the intervals of ratios (increase "
        "of the loss on gold answers, share of a gain). Intervals of rates and of their changes need none.",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the resamples; defaults to the recipe's seed.")

    @field_validator("lengths")
    @classmethod
    def _ascending(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if list(lengths) != sorted(set(lengths)):
            raise wrong("ascending lengths without repeats, such as [32, 64, 128]")
        return lengths

    @property
    def longest(self) -> int:
        """Tokens to generate: the largest of `max_new_tokens` and `lengths`."""
        return max((self.max_new_tokens, *self.lengths))

    @property
    def forward_rows(self) -> int:
        """Rows per forward pass over full texts, which is not halved on low memory: `batch_size`, or 16 for `auto`."""
        return _SMALL_BATCH if self.batch_size == "auto" else self.batch_size

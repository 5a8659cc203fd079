"""How a model is judged before and after."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, field_validator

from seawall.config.base import StrictModel, Tuple, wrong
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

_MAX_ROWS = 4096
_SMALL_BATCH = 16


def _batch_size(value: Any) -> int | str:
    if value == "auto":
        return "auto"
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MAX_ROWS:
        return value
    raise wrong(f"a count from 1 to {_MAX_ROWS}, or auto")


BatchSize = Annotated[int | Literal["auto"], PlainValidator(_batch_size)]
"""A count, or `auto`: what the free memory holds."""


class EvalConfig(StrictModel):
    """The evaluation, the same before and after the repair."""

    engine: EngineConfig = Field(default=TransformersEngine(), description="Who writes the replies.")
    max_new_tokens: int = Field(default=32, ge=1, le=8192, description="Greedy tokens generated per prompt.")
    lengths: Tuple[Annotated[int, Field(ge=1, le=8192)]] = Field(
        default=(),
        description="Judge replies also as they are after so many tokens, such as [32, 64, 128]: short replies inflate "
        "refusals.",
    )
    batch_size: BatchSize = Field(
        default=32, description="Prompts per batch, halved when memory runs out; `auto` takes what the memory holds."
    )
    judge: JudgeConfig = Field(default=KeywordJudge(), description="Who says refused, complied or unscored.")
    gold: bool = Field(default=True, description="Measure the loss on gold answers.")
    capability: CapabilityConfig | None = Field(
        default=None, description="Tasks of lm-evaluation-harness to measure too; none leaves it out."
    )
    bootstrap: int = Field(
        default=2000, ge=100, le=1_000_000, description="Resamples of the goals for each rate's 95 % interval."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the resamples; the recipe's seed unless given.")

    @field_validator("lengths")
    @classmethod
    def _ascending(cls, lengths: tuple[int, ...]) -> tuple[int, ...]:
        if list(lengths) != sorted(set(lengths)):
            raise wrong("ascending lengths, each once, such as [32, 64, 128]")
        return lengths

    @property
    def longest(self) -> int:
        """Tokens to generate: enough for the verdict and for every length."""
        return max((self.max_new_tokens, *self.lengths))

    @property
    def forward_rows(self) -> int:
        """Rows of a forward pass over whole texts, which has no back-off: `batch_size`, or few where it is `auto`."""
        return _SMALL_BATCH if self.batch_size == "auto" else self.batch_size

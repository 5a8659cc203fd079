"""Which experts are called safety-critical."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from seawall.config.base import StrictModel, wrong


def _count_or_fraction(value: Any) -> Any:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    is_fraction = isinstance(value, float) and 0.0 < value <= 1.0
    if not (is_count or is_fraction):
        raise wrong("a count of experts (1, 2, ...) or a fraction of all routed experts above 0 and up to 1.0")
    return value


class SelectConfig(StrictModel):
    """Selection of safety-critical experts (arXiv 2602.04448, section 3.2) and its controls."""

    method: Literal["frequency", "mass", "random", "frequency_matched"] = Field(
        default="frequency",
        description="Score by routing frequency (the paper) or by gate mass; or a control: random experts, or random "
        "experts that are used as often.",
    )
    scope: Literal["global", "batch_union"] = Field(
        default="global", description="Top k over all pairs, or the union of each batch's top k as in the paper's code."
    )
    k: Annotated[int | float, BeforeValidator(_count_or_fraction)] = Field(
        default=0.125,
        description="Experts to select: an integer counts them, a number with a point is a fraction of all experts.",
    )
    batch_pairs: int = Field(default=8, ge=1, le=4096, description="Pairs per batch for `scope: batch_union`.")
    bootstrap: int = Field(
        default=200,
        ge=0,
        le=100_000,
        description="Resamples of the goals for the stability of the selected set; 0 skips it.",
    )
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="Seed of controls and resamples; the recipe's seed unless given."
    )

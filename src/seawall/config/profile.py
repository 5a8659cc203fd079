"""The expert profile: counting the experts that attacks use."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from seawall.config.base import StrictModel


class ProfileConfig(StrictModel):
    """Generation and counting for the expert profile (arXiv 2602.04448, section 3.1)."""

    max_new_tokens: int = Field(
        default=128,
        ge=1,
        le=8192,
        description="Maximum length of a reply in tokens; replies are judged, and their routing is counted.",
    )
    batch_size: int = Field(default=16, ge=1, le=4096, description="Prompts per batch; halved when memory runs out.")
    successes: Literal["engaged"] | None = Field(
        default=None,
        description="The attack replies that count as a success: those that give what was asked (null), or also those "
        "that evade without refusing (`engaged`), for small models that play along and give nothing.",
    )
    tokens: Literal["generated", "prompt", "both"] = Field(
        default="generated",
        description="The tokens whose routing is counted for the scores; the paper counts generated tokens.",
    )

"""The engines that generate the replies to judge."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from seawall.config.base import StrictModel
from seawall.config.endpoint import EndpointSettings


class TransformersEngine(StrictModel):
    """Generate with the loaded model in this process."""

    kind: Literal["transformers"] = Field(default="transformers", description="Generate in this process, in batches.")


class EndpointEngine(EndpointSettings):
    """Request replies from an OpenAI-compatible endpoint, such as vLLM, SGLang or TGI."""

    kind: Literal["endpoint"] = Field(
        default="endpoint", description="Request replies from an OpenAI-compatible endpoint."
    )


EngineConfig = Annotated[TransformersEngine | EndpointEngine, Field(discriminator="kind")]
"""An engine; `kind` selects the variant."""

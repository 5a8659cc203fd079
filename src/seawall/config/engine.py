"""Who writes the replies that are judged: the engines, told apart by `kind`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from seawall.config.base import StrictModel
from seawall.config.endpoint import EndpointSettings


class TransformersEngine(StrictModel):
    """Generate here, with the loaded model."""

    kind: Literal["transformers"] = Field(default="transformers", description="Generate here, in batches.")


class EndpointEngine(EndpointSettings):
    """Ask a model behind any OpenAI-compatible endpoint, such as vLLM, SGLang or TGI."""

    kind: Literal["endpoint"] = Field(default="endpoint", description="Ask a model behind an endpoint.")


EngineConfig = Annotated[TransformersEngine | EndpointEngine, Field(discriminator="kind")]
"""Any engine, told apart by `kind`."""

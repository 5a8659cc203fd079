"""The engines that generate replies."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from seawall.config.base import StrictModel
from seawall.config.endpoint import EndpointSettings


class TransformersEngine(StrictModel):
    """Generate with the loaded model in this process."""

    kind: Literal["transformers"] = Field(default="transformers", description="Generate in this process, in batches.")


class ContinuousEngine(StrictModel):
    """Generate in this process by transformers' continuous batching."""

    kind: Literal["continuous"] = Field(
        default="continuous",
        description="Generate in this process by transformers' continuous batching, with a paged cache.",
    )
    cache_tokens: int = Field(
        default=16384,
        ge=256,
        le=2**24,
        description="Tokens of all prompts and replies in the cache at a time; bounds its memory.",
    )
    batch_tokens: int = Field(default=1024, ge=16, le=2**20, description="Maximum number of tokens per forward pass.")


class VllmEngine(StrictModel):
    """Generate with a vLLM server of our own, in a process and an environment of its own."""

    kind: Literal["vllm"] = Field(
        default="vllm",
        description="Start a vLLM server on the weights: `vllm`, or the program in the variable SEAWALL_VLLM.",
    )
    concurrency: int = Field(default=64, ge=1, le=1024, description="Maximum number of concurrent requests.")
    timeout: float = Field(
        default=900.0, gt=0, le=7200, description="Seconds until the server answers, and for one request."
    )
    memory: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Share of the GPU's memory for vLLM beside the local weights; null: vLLM's default.",
    )


class EndpointEngine(EndpointSettings):
    """Request replies from an OpenAI-compatible endpoint, such as vLLM, SGLang or TGI."""

    kind: Literal["endpoint"] = Field(
        default="endpoint", description="Request replies from an OpenAI-compatible endpoint."
    )


EngineConfig = Annotated[
    TransformersEngine | ContinuousEngine | VllmEngine | EndpointEngine, Field(discriminator="kind")
]
"""An engine; `kind` selects the variant."""

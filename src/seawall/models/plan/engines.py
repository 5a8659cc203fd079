"""Memory of replies by engine: our loop, transformers' continuous batching, and a vLLM server beside our process."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from seawall.config.engine import ContinuousEngine, EngineConfig, VllmEngine
from seawall.errors import ConfigError
from seawall.models.continuous import page_tokens
from seawall.models.plan.memory import cache_bytes, logit_bytes, working_bytes
from seawall.models.plan.request import Request
from seawall.models.plan.shapes import ModelShapes
from seawall.models.plan.stages import VLLM, Decoding, Moment, decoding_moments

_TRASH_SECTORS = 2
"""Pages of all layers that padding tokens write to."""
VLLM_SHARE = 0.92
"""vLLM's default of `--gpu-memory-utilization`: the share of the GPU's whole memory that its process takes."""
CPU_CACHE_BYTES = 2 * 2**30
"""The cache of a vLLM server that seawall starts on a CPU, beside its weights."""


def reply_moments(request: Request, engine: EngineConfig, batch: Decoding, beside: Mapping[str, int]) -> list[Moment]:
    """The moments of replies by an engine, beside other terms such as copies of the repair.

    Raises:
        ConfigError: vLLM's share of the memory does not hold the weights and the cache of the longest reply.
    """
    section = "engine" if engine == request.recipe.engine else "eval.engine"
    if engine.kind == "continuous":
        return [_continuous(request, engine, section, batch, beside)]
    if engine.kind == "vllm":
        return [_served(request, engine, section, batch, beside)]
    return list(decoding_moments(request.shapes, batch, beside, context=request.context))


def _continuous(
    request: Request, engine: ContinuousEngine, section: str, batch: Decoding, beside: Mapping[str, int]
) -> Moment:
    """A full forward pass of `batch_tokens` tokens M over a paged cache of N tokens (see `ContinuousDecoder`).

    Cache: b C per token and layer, for N tokens and two pages. Attention of one layer, as transformers reckons
    (`PagedAttentionMemoryHandler`, without flash attention): keys repeated to all heads, and values, as they are read
    back, b (N + M) (2 Q + C / 2); a mask of b M (N + M); 8 bytes per token to read by. Logits of R requests, at most
    one per page: V (b + 8).
    """
    shapes, page = request.shapes, page_tokens("cpu" if request.context == 0 else "cuda")
    longest = batch.prompt_tokens + batch.new_tokens
    pages = max(ceil(engine.cache_tokens / page), ceil(longest / page) + 1)
    size, tokens, b = pages * page, engine.batch_tokens, shapes.element_bytes
    read = (size + tokens) * (b * (2 * shapes.query + shapes.keys // 2 + tokens) + 8)
    terms = {
        "weights": shapes.weights,
        **beside,
        "paged cache": (size + _TRASH_SECTORS * page) * shapes.layers * shapes.cache * b,
        "activations": read + working_bytes(shapes, tokens),
        "logits": logit_bytes(shapes, min(pages, tokens), copies=2),
        "library context": request.context,
    }
    return Moment("continuous batching", terms, (f"{section}.cache_tokens", f"{section}.batch_tokens"))


def _served(request: Request, engine: VllmEngine, section: str, batch: Decoding, beside: Mapping[str, int]) -> Moment:
    """The server beside the loaded weights, which compare and count meanwhile.

    On a GPU it takes its share of the whole memory, whatever it needs; on a CPU its weights and a cache.
    """
    shapes = request.shapes
    server = shapes.weights + CPU_CACHE_BYTES
    if request.context:
        share = VLLM_SHARE if engine.memory is None else engine.memory
        server = int(share * request.device_memory)
        minimum = least_share(request, batch)
        if request.device_memory and share < minimum:
            raise ConfigError(
                f"{section}.memory does not hold the weights and the cache of one reply in vLLM",
                got=f"{share:g}",
                expected=f"{ceil(100 * minimum) / 100:g} or more of this GPU, at most 1",
                remedy=f"raise {section}.memory, use a larger GPU, or set {section}.kind=continuous",
            )
    terms = {
        "weights": shapes.weights,
        **beside,
        "activations": working_bytes(shapes, batch.rows * batch.prompt_tokens),
        VLLM: server,
        "library context": request.context,
    }
    return Moment("replies by vLLM", terms, (f"{section}.memory", *batch.settings))


def least_share(request: Request, batch: Decoding) -> float:
    """The least share of the GPU with which vLLM starts: weights, one reply's cache, and a context."""
    shapes = request.shapes
    needed = shapes.weights + _reply_cache(shapes, batch) + request.context
    return needed / request.device_memory if request.device_memory else 0.0


def _reply_cache(shapes: ModelShapes, batch: Decoding) -> int:
    return cache_bytes(shapes, 1, batch.prompt_tokens + batch.new_tokens)

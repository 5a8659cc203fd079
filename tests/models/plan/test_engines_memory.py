"""Memory of replies by engine: the paged cache against transformers' own tensor, and vLLM's share by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from families import tiny
from plan_shapes import SHAPES
from seawall.config.engine import ContinuousEngine
from seawall.config.recipe import Recipe
from seawall.errors import ConfigError
from seawall.models.continuous import ContinuousDecoder
from seawall.models.decoding import Decoding as Settings
from seawall.models.plan.engines import reply_moments
from seawall.models.plan.methods import VERBS
from seawall.models.plan.request import Request, memory_settings
from seawall.models.plan.shapes import ModelShapes
from seawall.models.plan.stages import DataSizes, Decoding, Moment

BATCH = Decoding(rows=4, prompt_tokens=50, new_tokens=14)
SIZES = DataSizes(20, 30, 10, 40, 2, 3, retained=15)


def _request(shapes: ModelShapes = SHAPES, context: int = 0, memory: int = 0, **sections: Any) -> Request:
    recipe = Recipe.model_validate(sections)
    return Request(shapes, recipe, SIZES, memory_settings(recipe), context, memory)


def _replies(request: Request) -> list[Moment]:
    return reply_moments(request, request.recipe.engine, BATCH, {"copies": 7})


def _allocated(model: PreTrainedModel, decoder: ContinuousDecoder, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes of the cache that transformers allocates to answer."""
    from transformers.generation.continuous_batching import cache

    sizes: list[int] = []
    zeros = torch.zeros

    def recorded(*shape: Any, **options: Any) -> torch.Tensor:
        tensor = zeros(*shape, **options)
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    monkeypatch.setattr(cache.torch, "zeros", recorded)
    list(decoder._replies(model, [tuple(range(40, 90))], Settings(14, eos_ids=frozenset(), pad_id=0)))
    return max(sizes)


@pytest.mark.parametrize("family", ["olmoe", "qwen3_moe"])
@pytest.mark.parametrize("cache_tokens", [256, 4096])
def test_the_paged_cache_is_the_tensor_that_transformers_allocates(
    family: str, cache_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(family)
    text = model.config
    heads = text.num_key_value_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    shapes = ModelShapes(1, 1, text.num_hidden_layers, text.hidden_size, 100, 1, 1, 2 * heads * head, 0, 1, 4)
    engine = ContinuousEngine(cache_tokens=cache_tokens, batch_tokens=64)
    (moment,) = reply_moments(_request(shapes), engine, BATCH, {})
    decoder = ContinuousDecoder(cache_tokens, 64)
    assert moment.terms["paged cache"] == _allocated(model, decoder, monkeypatch)


def test_continuous_batching_by_hand() -> None:
    engine = {"kind": "continuous", "cache_tokens": 1024, "batch_tokens": 128}
    (moment,) = _replies(_request(context=5, engine=engine))
    assert moment.name == "continuous batching"
    assert moment.terms["paged cache"] == (1024 + 2 * 256) * 4 * 8 * 2
    # Keys and values of one layer with repeated heads, a mask, and what a layer computes with 128 tokens.
    read = (1024 + 128) * (2 * (24 + 4 + 128) + 8)
    assert moment.terms["activations"] == read + 128 * (4 * 2 * 20 + 160)
    assert moment.terms["logits"] == 4 * 100 * (2 + 8)
    assert (moment.terms["copies"], moment.settings) == (7, ("engine.cache_tokens", "engine.batch_tokens"))


def test_a_longer_reply_raises_the_cache() -> None:
    engine = {"kind": "continuous", "cache_tokens": 256}
    request = _request(context=5, engine=engine)
    (moment,) = reply_moments(request, request.recipe.engine, Decoding(1, 1000, 100), {})
    assert moment.terms["paged cache"] == (6 * 256 + 2 * 256) * 4 * 8 * 2


def test_vllm_takes_its_share_of_a_gpu_and_its_weights_on_a_cpu() -> None:
    (moment,) = _replies(_request(context=5, memory=1_000_000, engine={"kind": "vllm", "memory": 0.4}))
    assert moment.terms["vLLM server"] == 400_000
    assert (moment.terms["weights"], moment.settings) == (20_000, ("engine.memory",))
    (default,) = _replies(_request(context=5, memory=1_000_000, engine={"kind": "vllm"}))
    assert default.terms["vLLM server"] == 920_000
    (on_cpu,) = _replies(_request(engine={"kind": "vllm"}))
    assert on_cpu.terms["vLLM server"] == 20_000 + 2 * 2**30


def test_a_share_without_room_for_the_weights_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"engine\.memory does not hold the weights .* got 0\.1; expected 0\.26"):
        _replies(_request(context=5, memory=100_000, engine={"kind": "vllm", "memory": 0.1}))


@pytest.mark.parametrize("verb", ["run", "profile", "eval", "repair", "gene extract", "audit", "steer"])
def test_the_verbs_that_take_an_engine_plan_it(verb: str) -> None:
    stages = VERBS[verb](_request(context=5, engine={"kind": "continuous"}))
    assert any(moment.name == "continuous batching" for stage in stages for moment in stage.moments)


def test_the_server_ends_before_the_training() -> None:
    (stage,) = VERBS["repair"](_request(context=5, memory=10**6, engine={"kind": "vllm"}))
    served = [moment for moment in stage.moments if "vLLM server" in moment.terms]
    assert served
    assert all("trainable copies" not in moment.terms for moment in served)
    copies = [moment for moment in stage.moments if moment.name == "decoding" and "trainable copies" in moment.terms]
    assert copies

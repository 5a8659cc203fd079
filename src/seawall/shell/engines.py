"""The engines of a recipe: what a verb checks before its work, and what they add to a stage's inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seawall.config.engine import EngineConfig
from seawall.config.recipe import Recipe
from seawall.errors import ConfigError
from seawall.evaluation.engines.decoders import EngineDecoder
from seawall.evaluation.engines.vllm import StoredWeights, VllmDecoder, vllm_program
from seawall.models.decoding import Loaded
from seawall.models.files.fingerprint import WeightDigests


def check_engines(recipe: Recipe) -> None:
    """Refuse an engine that is not here, before a run folder is made.

    Raises:
        ConfigError: there is no vLLM to start.
    """
    for engine in (recipe.engine, recipe.eval.engine):
        if engine.kind == "vllm":
            vllm_program()


def require_loadable(recipe: Recipe, refusal: str) -> None:
    """Refuse a model behind an endpoint.

    Args:
        recipe: model and engines.
        refusal: the message: what cannot be done with such a model.

    Raises:
        ConfigError: an engine is an endpoint.
    """
    for name, engine in (("engine", recipe.engine), ("eval.engine", recipe.eval.engine)):
        if engine.kind == "endpoint":
            raise ConfigError(
                refusal,
                got=f"{name}.kind=endpoint",
                expected="transformers, continuous or vllm",
                remedy=f"leave {name} out",
            )


def engine_inputs(engine: EngineConfig) -> dict[str, Any]:
    """What an engine adds to the inputs of a stage; nothing for the one that every earlier version had."""
    return {} if engine.kind == "transformers" else {"engine": engine.kind}


def prepare(decoder: EngineDecoder, loaded: Loaded, digests: WeightDigests, folder: Path | None) -> None:
    """Makes a decoder ready for a model that was just loaded.

    Args:
        decoder: of an engine.
        loaded: the model and its tokenizer.
        digests: of its weights.
        folder: the checkpoint with these weights; None where they are in memory alone.

    Raises:
        UnsupportedModelError: the engine cannot serve the model.
    """
    if isinstance(decoder, VllmDecoder):
        stored = None if folder is None else StoredWeights(folder, digests.fingerprint())
        decoder.register(loaded[0], digests, stored)
    decoder.prepare(loaded)

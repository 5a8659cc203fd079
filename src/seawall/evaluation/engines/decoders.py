"""The decoders of a verb by engine: each is made at first use, and all are closed together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from seawall.config.engine import EngineConfig
from seawall.errors import ConfigError
from seawall.evaluation.engines.continuous import CheckedContinuous
from seawall.evaluation.engines.vllm import VllmDecoder
from seawall.models.decoding import Batches, BatchSize, Decoding, Loaded, TokenIds
from seawall.models.generate import our_loop

Say = Callable[[str], None]


class EngineDecoder(Protocol):
    """A decoder with a beginning and an end."""

    def __call__(
        self, loaded: Loaded, prompts: Sequence[TokenIds], decoding: Decoding, *, batch_size: BatchSize
    ) -> Batches:
        """As `seawall.models.decoding.Decoder`."""
        ...

    def prepare(self, loaded: Loaded) -> None:
        """Refuses a model that the engine cannot serve, where that is known at once."""
        ...

    def close(self) -> None:
        """Ends what the engine has started."""
        ...


class LoopDecoder:
    """Our loop."""

    def __call__(
        self, loaded: Loaded, prompts: Sequence[TokenIds], decoding: Decoding, *, batch_size: BatchSize
    ) -> Batches:
        """As `our_loop`."""
        return our_loop(loaded, prompts, decoding, batch_size=batch_size)

    def prepare(self, loaded: Loaded) -> None:
        """Every model is served."""

    def close(self) -> None:
        """Nothing is open."""


def _loop(config: Any, scratch: Path, say: Say) -> EngineDecoder:
    return LoopDecoder()


def _continuous(config: Any, scratch: Path, say: Say) -> EngineDecoder:
    return CheckedContinuous(config)


def _vllm(config: Any, scratch: Path, say: Say) -> EngineDecoder:
    return VllmDecoder(config, scratch, say)


DECODERS: dict[str, Callable[[Any, Path, Say], EngineDecoder]] = {
    "transformers": _loop,
    "continuous": _continuous,
    "vllm": _vllm,
}
"""Decoders by `kind` in recipes, of the engines beside local weights: (settings, scratch folder, say) -> decoder."""


class Decoders:
    """The decoders of one verb; equal settings share one."""

    def __init__(self, scratch: Path, say: Say) -> None:
        """Makes none.

        Args:
            scratch: existing folder for copies of weights.
            say: receives a line for everything that takes long.
        """
        self._scratch, self._say = scratch, say
        self._decoders: dict[EngineConfig, EngineDecoder] = {}

    def of(self, config: EngineConfig) -> EngineDecoder:
        """The decoder of an engine beside local weights.

        Raises:
            ConfigError: the engine is an endpoint, or there is no vLLM to start.
        """
        if config.kind == "endpoint":
            raise ConfigError(
                "this work needs the weights, which an endpoint does not give",
                got="engine.kind=endpoint",
                expected=", ".join(DECODERS),
                remedy="leave engine and eval.engine out",
            )
        if config not in self._decoders:
            self._decoders[config] = DECODERS[config.kind](config, self._scratch, self._say)
        return self._decoders[config]

    def close(self) -> None:
        """Closes all."""
        for decoder in self._decoders.values():
            decoder.close()
        self._decoders.clear()

"""The engines, which generate replies. To add one: a file, a line here, a variant in `config/engine.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seawall.config.eval import EvalConfig
from seawall.evaluation.engines.reply import Engine, OnReplies, Reply

if TYPE_CHECKING:
    from seawall.models.decoding import Decoder, Loaded

__all__ = ["ENGINES", "Engine", "OnReplies", "Reply", "make_engine"]


def _local(config: EvalConfig, loaded: Loaded | None, decoder: Decoder | None, folder: Path | None) -> Engine:
    from seawall.evaluation.engines.transformers import TransformersEngine  # imports torch

    assert loaded is not None
    return TransformersEngine(*loaded, config.batch_size, decoder)


def _endpoint(config: Any, loaded: Loaded | None, decoder: Decoder | None, folder: Path | None) -> Engine:
    from seawall.evaluation.engines.endpoint import EndpointEngine  # imports an HTTP client

    return EndpointEngine(config.engine, folder)


ENGINES: dict[str, Callable[[EvalConfig, Loaded | None, Decoder | None, Path | None], Engine]] = {
    "transformers": _local,
    "continuous": _local,
    "vllm": _local,
    "endpoint": _endpoint,
}
"""Engines by `kind` in recipes: (evaluation settings, model and tokenizer, decoder, folder for raw answers) -> engine.

Those beside local weights differ in their decoder alone (`evaluation/engines/decoders.py`).
"""


def make_engine(
    config: EvalConfig, loaded: Loaded | None = None, *, decoder: Decoder | None = None, folder: Path | None = None
) -> Engine:
    """Creates the engine of an evaluation.

    Args:
        config: the engine and its settings.
        loaded: model and tokenizer, for every engine but an endpoint.
        decoder: generates their replies; None takes our loop, as it must be under hooks.
        folder: folder of an endpoint's saved answers; None saves none.

    Raises:
        SeawallError: an API key is not set, or saved answers are damaged.
    """
    return ENGINES[config.engine.kind](config, loaded, decoder, folder)

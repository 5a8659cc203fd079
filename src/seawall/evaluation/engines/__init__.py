"""The engines, which generate replies. To add one: a file, a line here, a variant in `config/engine.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seawall.config.eval import EvalConfig
from seawall.evaluation.engines.reply import Engine, OnReplies, Reply

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]

__all__ = ["ENGINES", "Engine", "OnReplies", "Reply", "make_engine"]


def _transformers(config: EvalConfig, loaded: Loaded | None, folder: Path | None) -> Engine:
    from seawall.evaluation.engines.transformers import TransformersEngine  # imports torch

    assert loaded is not None
    return TransformersEngine(*loaded, config.batch_size)


def _endpoint(config: Any, loaded: Loaded | None, folder: Path | None) -> Engine:
    from seawall.evaluation.engines.endpoint import EndpointEngine  # imports an HTTP client

    return EndpointEngine(config.engine, folder)


ENGINES: dict[str, Callable[[EvalConfig, Loaded | None, Path | None], Engine]] = {
    "transformers": _transformers,
    "endpoint": _endpoint,
}
"""Engines by `kind` in recipes: (evaluation settings, model and tokenizer, folder for raw answers) -> engine."""


def make_engine(config: EvalConfig, loaded: Loaded | None = None, *, folder: Path | None = None) -> Engine:
    """Creates the engine of an evaluation.

    Args:
        config: the engine and its settings.
        loaded: model and tokenizer, for the engine `transformers`.
        folder: folder of an endpoint's saved answers; None saves none.

    Raises:
        SeawallError: an API key is not set, or saved answers are damaged.
    """
    return ENGINES[config.engine.kind](config, loaded, folder)

"""The biases of an adapter that trains them: PEFT loads a file without them and keeps the model's own."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from safetensors import safe_open


def missing_biases(wrapped: Any, weights: Path) -> list[str]:
    """Names of biases that an adapter's configuration trains and its file lacks.

    Args:
        wrapped: PEFT's model, made from the configuration.
        weights: the adapter's file.
    """
    if wrapped.peft_config[wrapped.active_adapter].bias == "none":
        return []
    peft = importlib.import_module("peft")
    trained = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    with safe_open(weights, framework="pt") as file:
        stored = set(file.keys())
    return sorted(name for name in trained if "bias" in name.rpartition(".")[2] and name not in stored)

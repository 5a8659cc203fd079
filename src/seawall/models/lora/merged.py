"""Whether a merged adapter is the adapter: the same logits as PEFT computes with the adapter attached."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from seawall.errors import UnsupportedModelError

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_ROUNDED = 0.1
"""Largest relative difference of logits, by type of the weights: the sum of weight and update is rounded to 16 bits."""


def require_own_weights(wrapped: Any, folder: Path) -> None:
    """Refuses an adapter on one of two tied weights: attached it changes one of them, merged it would change both."""
    base_layer = importlib.import_module("peft.tuners.tuners_utils").BaseTunerLayer
    owners: dict[int, set[str]] = {}
    for name, parameter in wrapped.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter.data_ptr(), set()).add(name)
    adapted = {name: module for name, module in wrapped.named_modules() if isinstance(module, base_layer)}
    for name, module in adapted.items():
        weight = vars(module.get_base_layer()).get("_parameters", {}).get("weight")
        if weight is not None and len(owners[weight.data_ptr()]) > 1:
            raise UnsupportedModelError(
                f"the adapter in {folder} changes a weight that the model uses twice (tied embeddings)",
                got=f"LoRA on {name.removeprefix('base_model.model.')}",
                expected="an adapter of layers with weights of their own",
                remedy="merge the adapter into a copy of the model with tie_word_embeddings=false, and name that copy",
            )


def require_same_logits(merged: PreTrainedModel, expected: Tensor, folder: Path) -> None:
    """Compares a merged model with the model with the adapter attached.

    Args:
        merged: the model after the merge.
        expected: `probe_logits` before it.
        folder: the adapter's folder, for messages.

    Raises:
        UnsupportedModelError: the merged model is another one.
    """
    difference = relative_difference(probe_logits(merged), expected)
    if difference > _TOLERANCE.get(merged.dtype, _ROUNDED):
        raise UnsupportedModelError(
            f"the adapter in {folder} merged into the model gives another model than the adapter attached",
            got=f"logits that differ by {difference:.0%} on two prompts",
            expected="equal logits, up to rounding",
            remedy="merge the adapter with PEFT, check the result, and name the merged checkpoint instead",
        )


@torch.no_grad()
def probe_logits(model: Any) -> Tensor:
    """Logits (positions, V) in float32 of two fixed token sequences, in evaluation mode."""
    size = min(model.get_input_embeddings().weight.shape[0], 997)
    rows = [[(step * index * index + 3 * index + 5) % size for index in range(12)] for step in (7, 11)]
    modules = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        device = model.get_input_embeddings().weight.device
        return torch.cat([model(input_ids=torch.tensor([row], device=device)).logits[0].float() for row in rows])
    finally:
        for module, training in modules:
            module.training = training


def relative_difference(logits: Tensor, expected: Tensor) -> float:
    """The size of a difference of logits (positions, V), relative to their spread: the median over positions.

    A median, because in 16 bits rounding may send a single token to another expert.
    """
    spread = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1).clamp(min=1e-6)
    return float(((logits - expected).norm(dim=-1) / spread).median())

"""A graft loaded anew: its adapter as PEFT puts it on, against the same update in the weights.

In float32 whatever the weights' type: what differs then is the rounding of merged weights, not that of activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.artifacts.gene import Gene
from seawall.artifacts.graft import GraftCheck
from seawall.config.model import ModelConfig
from seawall.data.templating import encode_prompt
from seawall.data.types import user
from seawall.errors import ArtifactError
from seawall.models.load import load_model
from seawall.models.lora import load_worn

_PROBES = ("Tell me about the sea.", "How do I pick a lock?", "What is 17 plus 25?", "Write a short poem about rain.")


def check_merged(model: ModelConfig, adapter: Path, merged: Path, *, allowed: float) -> GraftCheck:
    """A merged checkpoint against the model that it was made of, with the adapter on it.

    Args:
        model: without the graft.
        adapter: the graft's folder as an adapter.
        merged: the checkpoint's.
        allowed: the largest difference of logits, as a share of the largest logit.

    Raises:
        ArtifactError: they differ by more.
    """
    theirs = _logits_with(model, adapter)
    other, tokenizer = load_model(_full(model.model_copy(update={"id": str(merged), "revision": None})))
    return _compared(theirs, _logits(other, tokenizer), allowed)


def check_added(model: ModelConfig, adapter: Path, gene: Gene, *, allowed: float) -> GraftCheck:
    """The model with the adapter on it against the same with the gene's update added to its weights.

    Raises:
        ArtifactError: they differ by more than `allowed`, a share of the largest logit.
    """
    theirs = _logits_with(model, adapter)
    other, tokenizer = load_model(_full(model))
    for name in gene.points:
        weight = other.get_parameter(name).data
        weight.copy_(weight.float() + gene.update(name).to(weight.device))
    return _compared(theirs, _logits(other, tokenizer), allowed)


def _full(model: ModelConfig) -> ModelConfig:
    return model.model_copy(update={"dtype": "float32"})


def _logits_with(config: ModelConfig, adapter: Path) -> list[Tensor]:
    """The logits with an adapter on the model, which is gone from memory then."""
    model, tokenizer = load_model(_full(config))
    return _logits(load_worn(model, adapter), tokenizer)


@torch.inference_mode()
def _logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    """After every token of each probe, in float32 on the CPU."""
    found = []
    for text in _PROBES:
        ids = torch.tensor([encode_prompt(tokenizer, user(text))], device=model.device)
        found.append(model(input_ids=ids, use_cache=False).logits.float().cpu())
    return found


def _compared(ours: Sequence[Tensor], theirs: Sequence[Tensor], allowed: float) -> GraftCheck:
    difference = max(float((left - right).abs().max()) for left, right in zip(ours, theirs, strict=True))
    check = GraftCheck(len(_PROBES), difference, max(float(one.abs().max()) for one in theirs))
    if not check.share <= allowed:
        raise ArtifactError(
            "the graft as an adapter and in the weights are two different models",
            got=f"a logit difference of {difference:.3g}, {check.share:.2%} of the largest logit",
            expected=f"at most {allowed:.2%} (gene.graft.max_logit_difference)",
            remedy="where the merged weights are rounded to 16 bits, allow more; else report this as a bug",
        )
    return check

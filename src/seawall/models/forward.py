"""The forward pass of training: padded on either side, positions counted from the first real token as in generation."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from seawall.data.batching import Batch
from seawall.models.find import MoEModel
from seawall.models.head import contiguous_output_layer


def run(moe: MoEModel, batch: Batch, *, keep: int) -> Tensor:
    """Logits of the last `keep` positions of a batch (B, keep, V)."""
    return run_model(moe.model, batch, keep=keep)


def run_model(model: PreTrainedModel, batch: Batch, *, keep: int) -> Tensor:
    """`run` of any causal language model, dense ones too."""
    batch = batch.to(model.device)
    positions_BT = (batch.attention_mask_BT.cumsum(1) - 1).clamp_min(0)
    with contiguous_output_layer(model):
        logits: Tensor = model(
            input_ids=batch.input_ids_BT,
            attention_mask=batch.attention_mask_BT,
            position_ids=positions_BT,
            use_cache=False,
            logits_to_keep=keep,
        ).logits
    return logits

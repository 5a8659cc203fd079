"""The model under study, the prompts it is asked, and a forward pass over them.

Legend: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.data.batching import Batch, collate
from seawall.data.templating import Encoded, encode_prompt
from seawall.data.types import Messages
from seawall.models.forward import contiguous_output_layer
from seawall.models.generate import TokenIds
from seawall.models.moe.find import MoEModel


@dataclass(frozen=True, eq=False)
class SteeringTarget:
    """A model, and how its refusal is read.

    Attributes:
        model: any causal language model with one stack of decoder layers.
        moe: its MoE layers; None for a dense model.
        fingerprint: of its weights.
        refusal_tokens: the tokens that open its refusals.
        batch_size: rows of a forward pass, at most.
    """

    model: PreTrainedModel
    moe: MoEModel | None
    fingerprint: str
    refusal_tokens: tuple[int, ...]
    batch_size: int

    @property
    def num_layers(self) -> int:
        """N, the number of decoder layers."""
        return int(self.model.config.get_text_config().num_hidden_layers)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as it is shown to people, and as the model gets it."""

    text: str
    token_ids: TokenIds


def encoded(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Messages]) -> list[Prompt]:
    """The prompts through the chat template.

    Raises:
        DataError: the tokenizer has no template, or it refuses a conversation.
    """
    return [Prompt(messages[-1].content, tuple(encode_prompt(tokenizer, messages))) for messages in prompts]


def batches(prompts: Sequence[Prompt], size: int) -> Iterator[tuple[list[int], Batch]]:
    """Places in `prompts` and their batch, padded on the left so that the last column holds every last token.

    Longest first, like lengths together.
    """
    order = sorted(range(len(prompts)), key=lambda at: -len(prompts[at].token_ids))
    for start in range(0, len(order), size):
        places = order[start : start + size]
        rows = [list(prompts[at].token_ids) for at in places]
        yield places, collate([Encoded(row, row) for row in rows], pad_id=0, side="left")


@torch.no_grad()
def last_logits(model: PreTrainedModel, batch: Batch, *, repeats: int = 1) -> Tensor:
    """Logits of the token after each prompt (B, V), positions counted from a row's first real token as in generation.

    Args:
        model: in evaluation mode.
        batch: padded on the left.
        repeats: how often the whole batch is put beneath itself: row `r * B + b` is the r-th copy of row b.
    """
    ids_BT, mask_BT = (
        part.to(model.device).repeat(repeats, 1) for part in (batch.input_ids_BT, batch.attention_mask_BT)
    )
    positions_BT = (mask_BT.cumsum(1) - 1).clamp_min(0)
    with contiguous_output_layer(model):
        logits: Tensor = model(
            input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT, use_cache=False, logits_to_keep=1
        ).logits
    return logits[:, -1]

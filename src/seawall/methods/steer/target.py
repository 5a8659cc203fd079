"""The target model of steering, its prompts, and a forward pass over them.

Legend: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.data.batching import Batch, collate, length_buckets
from seawall.data.templating import Encoded, encode_prompt
from seawall.data.types import Messages
from seawall.models.backoff import in_buckets
from seawall.models.forward import contiguous_output_layer
from seawall.models.generate import TokenIds
from seawall.models.moe.find import MoEModel
from seawall.models.replicas import shared_buckets

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class TargetModel:
    """A model, and the tokens of its refusal score.

    Attributes:
        model: any causal language model with one stack of decoder layers.
        moe: its MoE layers; None for a dense model.
        fingerprint: of its weights.
        refusal_tokens: the tokens that open its refusals.
        batch_size: maximum rows of a forward pass.
    """

    model: PreTrainedModel
    moe: MoEModel | None
    fingerprint: str
    refusal_tokens: tuple[int, ...]
    batch_size: int

    @property
    def subject(self) -> Any:
        """What a change is made to, in every process of a launch: the MoE layers, or a dense model."""
        return self.model if self.moe is None else self.moe

    @property
    def num_layers(self) -> int:
        """N, the number of decoder layers."""
        return int(self.model.config.get_text_config().num_hidden_layers)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as text for people, and as token ids."""

    text: str
    token_ids: TokenIds


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Messages]) -> list[Prompt]:
    """The prompts with the chat template applied.

    Raises:
        DataError: the tokenizer has no chat template, or the template rejects a conversation.
    """
    return [Prompt(messages[-1].content, tuple(encode_prompt(tokenizer, messages))) for messages in prompts]


def batches(prompts: Sequence[Prompt], size: int) -> Iterator[tuple[list[int], Batch]]:
    """Indices of prompts and their left-padded batch, whose last column holds every last token.

    Longest first, similar lengths together.
    """
    for places in length_buckets([len(prompt.token_ids) for prompt in prompts], size):
        yield places, _collated(prompts, places)


def measured(prompts: Sequence[Prompt], size: int, read: Callable[[Batch], T]) -> Iterator[tuple[list[int], T]]:
    """Indices of prompts and what `read` makes of their batch, as `batches`; smaller batches where memory runs out.

    Raises:
        SeawallError: one prompt alone exceeds memory.
    """
    buckets = length_buckets([len(prompt.token_ids) for prompt in prompts], size)
    yield from in_buckets(buckets, lambda places: read(_collated(prompts, places)))


def shared(
    target: TargetModel, prompts: Sequence[Prompt], read: Callable[[Any, Batch], T]
) -> Iterator[tuple[list[int], T]]:
    """`measured`, with the batches divided among the processes of a launch.

    Args:
        target: the model.
        prompts: the prompts.
        read: a function of a module, or a `partial` of one, of `target.subject` and a batch; gives CPU tensors.

    Raises:
        SeawallError: one prompt alone exceeds memory.
    """
    buckets = length_buckets([len(prompt.token_ids) for prompt in prompts], target.batch_size)
    yield from shared_buckets(target.subject, read, lambda places: _collated(prompts, places), buckets)


def _collated(prompts: Sequence[Prompt], places: Sequence[int]) -> Batch:
    rows = [list(prompts[index].token_ids) for index in places]
    return collate([Encoded(row, row) for row in rows], pad_id=0, side="left")


@torch.no_grad()
def last_logits(model: PreTrainedModel, batch: Batch, *, repeats: int = 1) -> Tensor:
    """Next-token logits of each prompt (B, V); positions count from a row's first real token, as in generation.

    Args:
        model: in evaluation mode.
        batch: left-padded.
        repeats: number of copies of the batch: row `r * B + b` is the r-th copy of row b.
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

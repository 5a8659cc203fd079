"""Loss on reference answers: the capability cost of a repair, on a finer scale than right and wrong answers.

Legend: B rows of the batch, T tokens, V vocabulary, N answer tokens of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from seawall.artifacts.evaluation import GoldAnswer
from seawall.data.batching import Batch, collate, length_buckets
from seawall.data.prompts import Gold
from seawall.data.templating import IGNORED, Encoded, encode_exchange
from seawall.errors import DataError
from seawall.models.decoding import context_length
from seawall.models.replicas import shared_buckets

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class GoldLoss:
    """Mean negative log-likelihood in nats per answer token, and the answers' own losses in the order of questions."""

    loss: float
    tokens: int
    answers: tuple[GoldAnswer, ...]

    @property
    def n(self) -> int:
        """Number of questions."""
        return len(self.answers)


def gold_answer_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Gold],
    *,
    batch_size: int,
    progress: Progress | None = None,
) -> GoldLoss:
    """The model's loss on the reference answers, given the questions in its own chat template.

    Every answer token weighs the same. The end token of the reply is left out: whether a model stops after a short
    answer is a matter of style, and a repair that teaches short refusals would seem to improve it.

    Args:
        model: in any mode; evaluated without dropout and left unchanged.
        tokenizer: a tokenizer with a chat template.
        rows: questions and answers.
        batch_size: rows per forward pass; batches hold similar lengths.
        progress: called after every batch with the number of rows done and in total.

    Raises:
        DataError: the tokenizer has no chat template, or the template refuses a conversation.
    """
    assert rows
    encoded = encode_gold(tokenizer, rows, context=context_length(model))
    total, tokens = 0.0, 0
    answers: dict[int, GoldAnswer] = {}
    buckets = length_buckets([len(row.input_ids) for row in encoded], batch_size)

    def batch_of(positions: list[int]) -> Batch:
        return collate([encoded[index] for index in positions], _pad_id(tokenizer))

    for positions, (losses_N, lengths) in shared_buckets(model, _answer_losses, batch_of, buckets):
        total += float(losses_N.sum(dtype=torch.float64))
        tokens += losses_N.numel()
        for index, row_N in zip(positions, torch.split(losses_N, lengths), strict=True):
            nats = float(row_N.sum(dtype=torch.float64))
            answers[index] = GoldAnswer(rows[index].id, nats, row_N.numel(), rows[index].fingerprint)
        if progress is not None:
            progress(len(answers), len(rows))
    return GoldLoss(total / tokens, tokens, tuple(answers[index] for index in range(len(rows))))


def encode_gold(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Gold], *, context: int | None = None
) -> list[Encoded]:
    """Token ids of the questions with their answers; labels on the answers alone.

    Args:
        tokenizer: with a chat template.
        rows: questions and answers.
        context: maximum tokens of question and answer together; None without a limit.

    Raises:
        DataError: the template refuses a conversation, or opens a thought before the answer; a row exceeds the context.
    """
    try:
        encoded = [_answer_only(encode_exchange(tokenizer, row.exchange)) for row in rows]
        _require_context(rows, encoded, context)
        return encoded
    except DataError as error:
        raise DataError(
            "the loss on gold answers cannot be measured", got=error, remedy="set eval.gold=false"
        ) from None


def _require_context(rows: Sequence[Gold], encoded: Sequence[Encoded], context: int | None) -> None:
    """Refuses rows whose positions the model has never learned: their loss says nothing of what it knows."""
    overlong = [row.id for row, ids in zip(rows, encoded, strict=True) if len(ids.input_ids) > (context or math.inf)]
    if overlong:
        raise DataError(
            f"{len(overlong)} of {len(rows)} gold questions with answers are beyond the context of {context} tokens",
            got=f"{overlong[0]} first",
            remedy="leave them out of data.gold, or shorten them",
        )


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode inside; the former mode is restored on exit."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _answer_only(row: Encoded) -> Encoded:
    """The row without the last label, which `encode_exchange` puts on the end token."""
    return Encoded(row.input_ids, [*row.labels[:-1], IGNORED])


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token, or any other: padding is masked."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return int(next(token for token in candidates if token is not None))


def _answer_lengths(batch: Batch) -> list[int]:
    """Number of labelled tokens of every row."""
    lengths: list[int] = (batch.labels_BT[:, 1:] != IGNORED).sum(dim=1).tolist()
    return lengths


def _answer_losses(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, list[int]]:
    """`_token_losses`, and the number of labelled tokens of every row."""
    return _token_losses(model, batch), _answer_lengths(batch)


@torch.no_grad()
def _token_losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Negative log-likelihood (N) in float32 of every labelled token; only their logits are cast to float32."""
    batch = batch.to(model.device)
    with _evaluating(model):
        logits_BTV = model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False).logits
    labels_BT = batch.labels_BT[:, 1:]
    answer_BT = labels_BT != IGNORED
    return torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1][answer_BT].float(), labels_BT[answer_BT], reduction="none"
    ).cpu()

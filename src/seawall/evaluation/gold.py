"""Loss on reference answers: what a repair costs in capability, far more finely than a score of right and wrong.

Legend: B rows of the batch, T tokens, V vocabulary, N answer tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from seawall.artifacts.evaluation import GoldAnswer
from seawall.data.batching import Batch, collate, length_buckets
from seawall.data.prompts import Gold
from seawall.data.templating import IGNORED, Encoded, encode_exchange

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class GoldLoss:
    """Mean negative log-likelihood in nats per answer token, and what it is made of, in the order of the questions."""

    loss: float
    tokens: int
    answers: tuple[GoldAnswer, ...]

    @property
    def n(self) -> int:
        """How many questions."""
        return len(self.answers)


def gold_answer_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Gold],
    *,
    batch_size: int,
    progress: Progress | None = None,
) -> GoldLoss:
    """How well a model predicts the reference answers, given the questions in its own chat template.

    Every answer token weighs the same. The token that ends the reply is left out: whether a model stops after a short
    answer is a matter of style, and a repair that teaches short refusals would seem to improve it.

    Args:
        model: in any mode; it is evaluated without dropout and left as it was.
        tokenizer: with a chat template.
        rows: questions and answers.
        batch_size: rows of a forward pass; batches hold like lengths.
        progress: told after every batch how many rows are done, and of how many.

    Raises:
        DataError: no chat template, or a conversation that it cannot take.
    """
    assert rows
    encoded = [_answer_only(encode_exchange(tokenizer, row.exchange)) for row in rows]
    total, tokens = 0.0, 0
    answers: dict[int, GoldAnswer] = {}
    was_training = model.training
    model.eval()
    try:
        for positions in length_buckets([len(row.input_ids) for row in encoded], batch_size):
            batch = collate([encoded[at] for at in positions], _pad_id(tokenizer)).to(model.device)
            losses_N = _token_losses(model, batch)
            total += float(losses_N.sum(dtype=torch.float64))
            tokens += losses_N.numel()
            for at, row_N in zip(positions, torch.split(losses_N, _answer_lengths(batch)), strict=True):
                answers[at] = GoldAnswer(rows[at].id, float(row_N.sum(dtype=torch.float64)), row_N.numel())
            if progress is not None:
                progress(len(answers), len(rows))
    finally:
        model.train(was_training)
    return GoldLoss(total / tokens, tokens, tuple(answers[at] for at in range(len(rows))))


def _answer_only(row: Encoded) -> Encoded:
    """Without a label on the end token, which `encode_exchange` makes the last label."""
    return Encoded(row.input_ids, [*row.labels[:-1], IGNORED])


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any token does: padding is masked."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return int(next(token for token in candidates if token is not None))


def _answer_lengths(batch: Batch) -> list[int]:
    """Labelled tokens of every row."""
    lengths: list[int] = (batch.labels_BT[:, 1:] != IGNORED).sum(dim=1).tolist()
    return lengths


@torch.no_grad()
def _token_losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Negative log-likelihood (N) in float32 of every labelled token; only their rows of the logits are widened."""
    logits_BTV = model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False).logits
    labels_BT = batch.labels_BT[:, 1:]
    answer_BT = labels_BT != IGNORED
    return torch.nn.functional.cross_entropy(
        logits_BTV[:, :-1][answer_BT].float(), labels_BT[answer_BT], reduction="none"
    )

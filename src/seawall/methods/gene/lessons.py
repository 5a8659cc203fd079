"""What genes are made of and tuned on: replies under a loss, harmful and harmless ones told apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from seawall.data.batching import collate, length_buckets
from seawall.data.splits import SplitName
from seawall.data.templating import Encoded
from seawall.data.types import Exchange, Message
from seawall.models.forward import run_model
from seawall.runs.files import read_metrics, write_metrics
from seawall.train.losses import response_cross_entropy, response_divergence

LIKELIEST = 64
"""Tokens kept per position of a teacher's prediction; what is left of the probability counts as one more outcome."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A prompt with a reply to it, and whether the prompt asks for harm."""

    encoded: Encoded
    harmful: bool


@dataclass(frozen=True, eq=False)
class Prediction:
    """A teacher's likeliest next tokens at the R tokens of one reply, with their log-probabilities (R, K)."""

    tokens_RK: Tensor
    log_probability_RK: Tensor


@dataclass(frozen=True, eq=False)
class Taught:
    """Lessons with a teacher's predictions, in the same order."""

    lessons: Sequence[Lesson]
    predictions: Sequence[Prediction]
    pad_id: int

    def divergence(self, model: PreTrainedModel, positions: Sequence[int]) -> Tensor:
        """KL(teacher || model) of some lessons (B), each the mean over its reply, in nats per token."""
        rows = [self.lessons[at].encoded for at in positions]
        logits_BTV, labels_BT = _forward(model, rows, self.pad_id)
        width = logits_BTV.shape[1] - 1
        kept = [self.predictions[at] for at in positions]
        tokens_BTK = torch.stack([_padded(one.tokens_RK, width) for one in kept]).long().to(logits_BTV.device)
        log_BTK = torch.stack([_padded(one.log_probability_RK, width) for one in kept]).to(logits_BTV.device)
        return response_divergence(logits_BTV, labels_BT, tokens_BTK, log_BTK)

    @torch.no_grad()
    def mean_divergence(
        self, model: PreTrainedModel, batch_size: int, seen: Callable[[Sequence[int]], None] | None = None
    ) -> tuple[float, float]:
        """The mean over harmful lessons and over harmless ones; 0 where there are none.

        Args:
            model: the student.
            batch_size: rows of a forward pass.
            seen: told after every forward pass which lessons were in it.
        """
        found = torch.zeros(len(self.lessons))
        for positions in buckets(self.lessons, batch_size):
            found[positions] = self.divergence(model, positions).float().cpu()
            if seen is not None:
                seen(positions)
        harmful = torch.tensor([one.harmful for one in self.lessons], dtype=torch.bool)
        return _mean(found[harmful]), _mean(found[~harmful])


@torch.no_grad()
def teach(model: PreTrainedModel, lessons: Sequence[Lesson], pad_id: int, *, batch_size: int) -> Taught:
    """The model's predictions on the lessons, kept on the CPU: LIKELIEST x 8 bytes for each token of a reply."""
    found: dict[int, Prediction] = {}
    for positions in buckets(lessons, batch_size):
        rows = [lessons[at].encoded for at in positions]
        logits_BTV, _ = _forward(model, rows, pad_id)
        for at, logits_TV in zip(positions, logits_BTV, strict=True):
            predicted_RV = logits_TV[-1 - lessons[at].encoded.response_tokens : -1]
            top = predicted_RV.float().log_softmax(-1).topk(min(LIKELIEST, logits_TV.shape[-1]), dim=-1)
            found[at] = Prediction(top.indices.to("cpu", torch.int32), top.values.to("cpu", copy=True))
    return Taught(lessons, [found[at] for at in range(len(lessons))], pad_id)


def cross_entropy(model: PreTrainedModel, rows: Sequence[Encoded], pad_id: int) -> Tensor:
    """Mean cross-entropy of each row's reply (B), in nats per token."""
    return response_cross_entropy(*_forward(model, rows, pad_id))


def buckets(lessons: Sequence[Lesson], batch_size: int) -> list[list[int]]:
    """Positions in batches of like lengths."""
    return length_buckets([len(one.encoded.input_ids) for one in lessons], batch_size)


def _forward(model: PreTrainedModel, rows: Sequence[Encoded], pad_id: int) -> tuple[Tensor, Tensor]:
    """Logits and labels of the longest reply and of the position before it, replies aligned at their end."""
    batch = collate(rows, pad_id, side="left")
    width = max(row.response_tokens for row in rows) + 1
    logits_BTV = run_model(model, batch, keep=width)
    return logits_BTV, batch.labels_BT[:, -width:].to(logits_BTV.device)


def _padded(tensor_RK: Tensor, width: int) -> Tensor:
    return torch.cat([tensor_RK.new_zeros(width - len(tensor_RK), tensor_RK.shape[1]), tensor_RK])


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0


@dataclass(frozen=True, slots=True)
class AlignedReply:
    """One reply, whether its prompt asks for harm, and the part that the prompt is of."""

    part: SplitName
    harmful: bool
    exchange: Exchange


def write_replies(path: Path, replies: Sequence[AlignedReply]) -> None:
    """One JSON object a line."""
    write_metrics(
        path,
        [
            {
                "part": one.part,
                "harmful": one.harmful,
                "messages": [message.as_dict() for message in one.exchange.prompt],
                "response": one.exchange.response,
                "ended": one.exchange.ended,
            }
            for one in replies
        ],
    )


def read_replies(path: Path) -> list[AlignedReply]:
    """What `write_replies` wrote.

    Raises:
        ArtifactError: the file is damaged.
    """
    found = []
    for row in read_metrics(path):
        prompt = tuple(Message(one["role"], one["content"]) for one in row["messages"])
        exchange = Exchange(prompt, row["response"], prompt[-1].content, row["ended"])
        found.append(AlignedReply(row["part"], row["harmful"], exchange))
    return found

"""Training examples for genes: tokenised replies flagged harmful or harmless, and their losses.

Shapes: `B` examples, `T` positions, `R` response tokens of one reply, `K` top tokens, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.data.batching import collate, length_buckets
from seawall.data.templating import Encoded, encode_example
from seawall.data.types import Exchange
from seawall.models.forward import run_model
from seawall.models.replicas import shared_buckets
from seawall.train.losses import response_cross_entropy, response_divergence

TOP_TOKENS = 64
"""Tokens stored per position of a teacher's prediction; the remaining probability counts as one more outcome."""

MEMORY_REMEDY = (
    "load the model in bfloat16 (model.dtype), lower gene.rank, or take more GPUs (model.device_map=auto), and "
    "run the same command again: finished stages stay"
)


@dataclass(frozen=True, slots=True)
class Example:
    """A tokenised prompt and reply, and whether the prompt is harmful."""

    encoded: Encoded
    harmful: bool


@dataclass(frozen=True, eq=False)
class TeacherPrediction:
    """The teacher's K most likely next tokens at the R response tokens of one reply, with log-probabilities (R, K)."""

    tokens_RK: Tensor
    log_probability_RK: Tensor


@dataclass(frozen=True, eq=False)
class TeacherTargets:
    """Examples and the teacher's predictions on them, in the same order."""

    examples: Sequence[Example]
    predictions: Sequence[TeacherPrediction]
    pad_id: int

    def divergence(self, model: PreTrainedModel, positions: Sequence[int]) -> Tensor:
        """KL(teacher || model) of the examples at these positions (B): mean over each reply, in nats per token."""
        rows = [self.examples[position].encoded for position in positions]
        logits_BTV, labels_BT = _forward(model, rows, self.pad_id)
        width = logits_BTV.shape[1] - 1
        predictions = [self.predictions[position] for position in positions]
        tokens_BTK = torch.stack([_padded(prediction.tokens_RK, width) for prediction in predictions]).long()
        log_BTK = torch.stack([_padded(prediction.log_probability_RK, width) for prediction in predictions])
        device = logits_BTV.device
        return response_divergence(logits_BTV, labels_BT, tokens_BTK.to(device), log_BTK.to(device))

    def of(self, positions: Sequence[int]) -> TeacherTargets:
        """The examples at these positions, with their predictions."""
        examples = [self.examples[position] for position in positions]
        return TeacherTargets(examples, [self.predictions[position] for position in positions], self.pad_id)

    @torch.no_grad()
    def divergences(self, model: PreTrainedModel) -> Tensor:
        """`divergence` of all examples in one forward pass (B), float32 on the CPU."""
        return self.divergence(model, range(len(self.examples))).float().cpu()

    def mean_divergence(self, model: PreTrainedModel, batch_size: int) -> tuple[float, float]:
        """Mean divergence over harmful examples and over harmless ones; 0 where a kind has no example.

        Args:
            model: the student; where it has copies in other processes, these compute some batches.
            batch_size: rows of a forward pass.
        """
        divergence_B = torch.zeros(len(self.examples))
        for positions, values_B in shared_buckets(model, _divergences, self.of, buckets(self.examples, batch_size)):
            divergence_B[positions] = values_B
        return self.means(divergence_B)

    def means(self, divergence_B: Tensor) -> tuple[float, float]:
        """The means of values of the examples (B) over harmful ones and over harmless ones."""
        harmful = torch.tensor([example.harmful for example in self.examples], dtype=torch.bool)
        return _mean(divergence_B[harmful]), _mean(divergence_B[~harmful])


def teacher_predictions(
    model: PreTrainedModel, examples: Sequence[Example], pad_id: int, *, batch_size: int
) -> TeacherTargets:
    """The model's predictions on the examples, stored on the CPU: TOP_TOKENS x 8 bytes per response token."""

    def rows_of(positions: list[int]) -> list[Encoded]:
        return [examples[position].encoded for position in positions]

    predict = partial(_predictions, pad_id=pad_id)
    predictions: dict[int, TeacherPrediction] = {}
    for positions, predicted in shared_buckets(model, predict, rows_of, buckets(examples, batch_size)):
        predictions.update(zip(positions, predicted, strict=True))
    return TeacherTargets(examples, [predictions[position] for position in range(len(examples))], pad_id)


@torch.no_grad()
def _predictions(model: PreTrainedModel, rows: Sequence[Encoded], *, pad_id: int) -> list[TeacherPrediction]:
    logits_BTV, _ = _forward(model, rows, pad_id)
    predictions = []
    for row, logits_TV in zip(rows, logits_BTV, strict=True):
        predicted_RV = logits_TV[-1 - row.response_tokens : -1]
        top = predicted_RV.float().log_softmax(-1).topk(min(TOP_TOKENS, logits_TV.shape[-1]), dim=-1)
        tokens_RK, log_RK = top.indices.to("cpu", torch.int32), top.values.to("cpu", copy=True)
        predictions.append(TeacherPrediction(tokens_RK, log_RK))
    return predictions


def _divergences(model: PreTrainedModel, targets: TeacherTargets) -> Tensor:
    return targets.divergences(model)


def distillation_examples(
    tokenizer: PreTrainedTokenizerBase, harmful: Sequence[Exchange], harmless: Sequence[Exchange]
) -> list[Example]:
    """Exchanges of both kinds, tokenised; the harmful ones first."""
    kinds = ((True, harmful), (False, harmless))
    return [Example(encode_example(tokenizer, exchange), kind) for kind, exchanges in kinds for exchange in exchanges]


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token to pad batches with; padding is masked, so any token will do."""
    return int(tokenizer.pad_token_id or 0)


def cross_entropy(model: PreTrainedModel, rows: Sequence[Encoded], pad_id: int) -> Tensor:
    """Mean cross-entropy of each row's reply (B), in nats per token."""
    return response_cross_entropy(*_forward(model, rows, pad_id))


def buckets(examples: Sequence[Example], batch_size: int) -> list[list[int]]:
    """Positions of the examples, in batches of similar length."""
    return length_buckets([len(example.encoded.input_ids) for example in examples], batch_size)


def _forward(model: PreTrainedModel, rows: Sequence[Encoded], pad_id: int) -> tuple[Tensor, Tensor]:
    """Logits and labels over the longest reply and the position before it; replies are aligned at their ends."""
    batch = collate(rows, pad_id, side="left")
    width = max(row.response_tokens for row in rows) + 1
    logits_BTV = run_model(model, batch, keep=width)
    return logits_BTV, batch.labels_BT[:, -width:].to(logits_BTV.device)


def _padded(tensor_RK: Tensor, width: int) -> Tensor:
    return torch.cat([tensor_RK.new_zeros(width - len(tensor_RK), tensor_RK.shape[1]), tensor_RK])


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0

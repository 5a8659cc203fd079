"""What the unrepaired model predicts in the answers that a repair must keep.

Legend: B rows, T tokens of the batch's responses, R response tokens of one row, K likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seawall.data.batching import collate, length_buckets
from seawall.data.templating import Encoded
from seawall.models.find import MoEModel
from seawall.repair.forward import run

LIKELIEST = 64
"""Tokens kept per position; what is left of the probability counts as one more outcome."""


@dataclass(frozen=True)
class LikeliestTokens:
    """The likeliest next tokens at every response position of some rows, aligned at the end."""

    tokens_BTK: Int[Tensor, "B T K"]
    log_probability_BTK: Float[Tensor, "B T K"]


@final
class OriginalPredictions:
    """The next-token distributions of a model, as it was when this was made, at the response positions of rows.

    Kept on the CPU: LIKELIEST x 8 bytes for each response token.
    """

    def __init__(self, moe: MoEModel, rows: Sequence[Encoded], pad_id: int, *, batch_size: int) -> None:
        self._rows: dict[int, LikeliestTokens] = {}
        for positions in length_buckets([len(row.input_ids) for row in rows], batch_size):
            some = [rows[at] for at in positions]
            width = max(row.response_tokens for row in some) + 1
            with torch.no_grad():
                logits_BTV = run(moe, collate(some, pad_id, side="left"), keep=width)[:, :-1]
                top = logits_BTV.float().log_softmax(-1).topk(min(LIKELIEST, logits_BTV.shape[-1]), dim=-1)
            for at, row, tokens, values in zip(positions, some, top.indices, top.values, strict=True):
                kept = slice(width - 1 - row.response_tokens, None)
                self._rows[at] = LikeliestTokens(tokens[kept].to("cpu", torch.int32), values[kept].to("cpu", copy=True))

    def of(self, positions: Sequence[int], *, width: int) -> LikeliestTokens:
        """These rows as one batch of `width` response positions; those before a row's response hold zeros."""
        rows = [self._rows[at] for at in positions]
        return LikeliestTokens(
            torch.stack([_padded(row.tokens_BTK, width) for row in rows]).long(),
            torch.stack([_padded(row.log_probability_BTK, width) for row in rows]),
        )


def _padded(tensor_RK: Tensor, width: int) -> Tensor:
    return torch.cat([tensor_RK.new_zeros(width - len(tensor_RK), tensor_RK.shape[1]), tensor_RK])

"""A batch that decodes greedily, and the check that its rows are what they are alone.

Some families mix rows or padding: linear attention that reads padded positions, caches whose rows cannot leave.

Legend: B rows of the batch, T tokens so far, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from seawall.errors import UnsupportedModelError
from seawall.models.decoding import NOT_FINITE, TokenIds, context_length
from seawall.models.prefill import can_share, left_padded, plan_of, shared_first_pass
from seawall.models.sharding import is_sharded

CHECKED_TOKENS = 64
"""Largest number of tokens that the check decodes."""
_LENGTHS = (144, 6)
"""Tokens of the two prompts: one exceeds the windows of 128 tokens that some families compress."""
_TOLERANCE = 1e-3
_TOLERANCE_16_BIT = 0.1
"""Largest difference of logits relative to their spread. In 16 bits a row's logits depend on its batch by rounding."""
_checked: WeakKeyDictionary[PreTrainedModel, tuple[int, bool]] = WeakKeyDictionary()


class GreedyBatch:
    """The unfinished rows and their cache, which the model creates itself, so that every kind of layer gets its own.

    Attributes:
        logits_BV: of the last step.
    """

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[TokenIds], pad_id: int, *, share: bool = False
    ) -> None:
        """Begins with these prompts; with `share`, common beginnings are computed once where that is known to work."""
        # The class's forward: an instance's may be wrapped, and then its signature hides the arguments.
        accepted = inspect.signature(type(model).forward).parameters
        if "past_key_values" not in accepted:
            raise UnsupportedModelError(
                f"{type(model).__name__} cannot generate with seawall",
                got="a forward pass without past_key_values",
                expected="a causal language model with a key-value cache",
            )
        self.logits_BV = torch.empty(0)
        self._model = model
        self._cache: Any = None
        self._takes_positions = "position_ids" in accepted
        # The output layer over every prompt token would cost more than all other layers of a small model's prefill.
        self._options = {"use_cache": True} | ({"logits_to_keep": 1} if "logits_to_keep" in accepted else {})
        self._tokens_BT, self._mask_BT = left_padded(prompts, pad_id, device=model.device)
        self._positions_BT = (self._mask_BT.cumsum(-1) - 1).clamp(min=0)
        plan = plan_of(prompts) if share and self._takes_positions else None
        shared = plan is not None and can_share(model, self._forward)
        self._begun = partial(shared_first_pass, self._forward, prompts, plan, pad_id) if plan and shared else None

    def step(self) -> list[int]:
        """The next token of each row, which also becomes the next input; `NOT_FINITE` for NaN or infinity."""
        if self._begun is None:
            output = self._forward(self._tokens_BT, self._mask_BT, self._positions_BT, self._cache)
            self._cache, self.logits_BV = output.past_key_values, output.logits[:, -1]
        else:
            self._cache, self.logits_BV = self._begun(device=self._mask_BT.device)
            self._begun = None
        highest_B, next_B = (column.to(self._mask_BT.device) for column in self.logits_BV.max(dim=-1))
        self._tokens_BT = next_B[:, None]
        self._mask_BT = torch.nn.functional.pad(self._mask_BT, (0, 1), value=1)
        self._positions_BT = self._positions_BT[:, -1:] + 1
        return [int(token) for token in next_B.where(highest_B.isfinite(), NOT_FINITE).tolist()]

    def _forward(self, tokens_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor, cache: Any) -> Any:
        positions = {"position_ids": positions_BT} if self._takes_positions else {}
        return self._model(
            input_ids=tokens_BT, attention_mask=mask_BT, past_key_values=cache, **positions, **self._options
        )

    def force(self, tokens: Sequence[int]) -> None:
        """Makes these tokens the next input, in place of the last step's."""
        self._tokens_BT = torch.tensor(tokens, device=self._mask_BT.device)[:, None]

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all other rows, by reordering the cache with fewer rows: the one call that every kind of layer has."""
        rows_B = torch.tensor(rows, device=self._mask_BT.device)
        self._cache.reorder_cache(rows_B)
        self._tokens_BT = self._tokens_BT[rows_B]
        self._mask_BT = self._mask_BT[rows_B]
        self._positions_BT = self._positions_BT[rows_B]


def rows_are_independent(model: PreTrainedModel, tokens: int = CHECKED_TOKENS) -> bool:
    """Whether a row of a batch is the row alone, as a decode of two prompts of unequal length shows; once per model.

    Args:
        model: any causal language model.
        tokens: number of tokens to decode, at most `CHECKED_TOKENS`.
    """
    tokens = 1 if is_sharded(model) else min(tokens, CHECKED_TOKENS)  # a sharded model decodes no reply
    checked, independent = independence_check(model)
    if independent and checked < tokens:
        independent = _takes_cache(model) is False or _same_together(model, tokens)
        _checked[model] = (tokens, independent)
    return independent


def rows_known_dependent(model: PreTrainedModel) -> bool:
    """Whether `rows_are_independent` has found that a row in a left-padded batch is not the row alone; runs nothing."""
    return not independence_check(model)[1]


def independence_check(model: PreTrainedModel) -> tuple[int, bool]:
    """The result of `rows_are_independent` so far: tokens decoded, and whether rows are independent; runs nothing."""
    return _checked.get(model, (0, True))


def adopt_independence_check(model: PreTrainedModel, check: tuple[int, bool]) -> None:
    """Takes over the result for a model with the same weights in another process."""
    _checked[model] = check


def batching_notice(model: PreTrainedModel, tokens: int = CHECKED_TOKENS) -> str | None:
    """One line where rows are decoded one at a time; None where batches are right."""
    if rows_are_independent(model, tokens):
        return None
    name = type(model).__name__
    return (
        f"{name} gives other replies in a batch than alone: replies are generated one prompt at a time, which is slow"
    )


@torch.no_grad()
def _same_together(model: PreTrainedModel, tokens: int) -> bool:
    """Decodes two prompts together and alone, with the tokens of the rows alone as input, and compares logits.

    Half way the first row leaves, as a reply that ends does.
    """
    size = int(model.get_input_embeddings().weight.shape[0])
    limit = context_length(model) or sum(_LENGTHS) + tokens
    tokens = min(tokens, max(1, limit // 2))
    lengths = [max(1, min(length, limit - tokens)) for length in _LENGTHS]
    prompts = [tuple((7 * index * index + 3 * index + length) % size for index in range(length)) for length in lengths]
    was_training = model.training
    model.eval()
    try:
        differences = _differences(model, prompts, tokens)
    except (RuntimeError, IndexError, TypeError, ValueError):  # a cache whose rows cannot leave
        return False
    finally:
        model.train(was_training)
    if model.dtype in (torch.float32, torch.float64):
        return max(differences) <= _TOLERANCE
    return median(differences) <= _TOLERANCE_16_BIT


def _differences(model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], tokens: int) -> list[float]:
    alone = [GreedyBatch(model, [prompt], 0) for prompt in prompts]
    together = GreedyBatch(model, prompts, 0)
    rows, differences = list(range(len(prompts))), []
    for length in range(1, tokens + 1):
        new = [max(batch.step()[0], 0) for batch in alone]
        together.step()
        expected_BV = torch.cat([alone[row].logits_BV for row in rows]).float()
        spread_B = (expected_BV - expected_BV.mean(-1, keepdim=True)).norm(dim=-1).clamp(min=1e-6)
        relative_B = (together.logits_BV.float() - expected_BV).norm(dim=-1) / spread_B
        differences.append(float(relative_B.max()))
        together.force([new[row] for row in rows])
        if length == max(1, tokens // 2) and tokens > 1:
            together.keep(rows[1:])
            rows = rows[1:]
    return differences


def _takes_cache(model: PreTrainedModel) -> bool:
    return "past_key_values" in inspect.signature(type(model).forward).parameters

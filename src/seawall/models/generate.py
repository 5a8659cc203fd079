"""Greedy text generation in batches, for any causal language model that keeps a key-value cache.

Legend: B rows of the batch, T tokens so far, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from seawall.data.templating import encode_prompt
from seawall.data.types import Messages
from seawall.errors import SeawallError, UnsupportedModelError
from seawall.models.forward import contiguous_output_layer
from seawall.models.memory import automatic_batch_size, unless_out_of_memory

TokenIds = tuple[int, ...]
BatchSize = int | Literal["auto"]
"""Rows of a forward pass, at most; `auto`: what the free memory holds."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One reply. `token_ids` holds neither padding nor the end token; `ended` says whether an end token came."""

    text: str
    token_ids: TokenIds
    prompt_ids: TokenIds
    ended: bool = True


Progress = Callable[[int, int], None]
"""Told, after every batch, how many prompts are done and how many there are."""
OnBatch = Callable[[Sequence[int], Sequence[Completion]], None]
"""Given, after every batch, the positions of its prompts and their completions: the place to checkpoint."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """When replies end, and which token fills up a batch (it is masked)."""

    max_new_tokens: int
    eos_ids: frozenset[int]
    pad_id: int


def decoding_for(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> Decoding:
    """The end tokens of the tokenizer and of the model's generation config; any token pads where none is declared."""
    declared = [tokenizer.eos_token_id]
    if model.generation_config is not None:
        configured = model.generation_config.eos_token_id
        declared += configured if isinstance(configured, list | tuple) else [configured]
    eos_ids = frozenset(int(token) for token in declared if token is not None)
    pad_id = tokenizer.pad_token_id
    return Decoding(max_new_tokens, eos_ids, int(pad_id) if pad_id is not None else min(eos_ids, default=0))


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    *,
    max_new_tokens: int,
    batch_size: BatchSize,
    progress: Progress | None = None,
    on_batch: OnBatch | None = None,
) -> list[Completion]:
    """Greedy replies to `prompts`, in their order.

    Sampling settings of the model's generation config (temperature, repetition penalty, forced tokens) are not used:
    every token is the argmax, so the same weights give the same text. In 16-bit precision the rows of a batch can still
    differ in the last bits with the batch's make-up, and a tie can fall the other way.

    Args:
        model: any causal language model with a key-value cache.
        tokenizer: its tokenizer, with a chat template.
        prompts: conversations that end with a user turn.
        max_new_tokens: length at which a reply is cut, in tokens.
        batch_size: rows of a forward pass, at most; `auto` for what the free memory holds. It is halved for good when
            memory runs out.
        progress: told how many prompts are done after every batch.
        on_batch: given the positions and completions of every batch as it ends; batches run longest prompt first.

    Raises:
        UnsupportedModelError: the model keeps no key-value cache.
        SeawallError: memory is too small even for one prompt.
    """
    decoding = decoding_for(model, tokenizer, max_new_tokens)
    encoded = [tuple(encode_prompt(tokenizer, prompt)) for prompt in prompts]
    replies: dict[int, Completion] = {}
    for positions, rows in greedy_batches(model, encoded, decoding, batch_size=batch_size):
        done = [
            _completion(tokenizer, encoded[at], row, decoding.eos_ids) for at, row in zip(positions, rows, strict=True)
        ]
        replies.update(zip(positions, done, strict=True))
        if on_batch is not None:
            on_batch(positions, done)
        if progress is not None:
            progress(len(replies), len(prompts))
    return [replies[at] for at in range(len(prompts))]


def _completion(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: TokenIds, row: TokenIds, eos_ids: frozenset[int]
) -> Completion:
    ended = row[-1] in eos_ids
    kept = row[:-1] if ended else row
    return Completion(str(tokenizer.decode(list(kept), skip_special_tokens=True)), kept, prompt_ids, ended)


def greedy_batches(
    model: PreTrainedModel, prompts: Sequence[TokenIds], decoding: Decoding, *, batch_size: BatchSize
) -> Iterator[tuple[list[int], list[TokenIds]]]:
    """Greedy decoding of token sequences, yielded batch by batch as (positions in `prompts`, new tokens of each).

    A row's tokens end with the end token, if one came. Batches hold prompts of like length, the longest first: memory
    runs out in the first batch or never, and a remaining time taken from the first batches errs on the long side.

    Raises:
        UnsupportedModelError: the model keeps no key-value cache.
        SeawallError: memory is too small even for one prompt.
    """
    assert decoding.max_new_tokens > 0
    if batch_size == "auto":
        longest = max(map(len, prompts), default=0)
        batch_size = automatic_batch_size(model, longest + decoding.max_new_tokens)
    assert batch_size > 0
    waiting = sorted(range(len(prompts)), key=lambda at: -len(prompts[at]))
    while waiting:
        positions = waiting[:batch_size]
        with _evaluating(model), contiguous_output_layer(model):
            batch = [prompts[at] for at in positions]
            rows = unless_out_of_memory(partial(decode_batch, model, batch, decoding))
        if rows is not None:
            waiting = waiting[len(positions) :]
            yield positions, rows
            continue
        if len(positions) == 1:
            raise SeawallError(
                "memory ran out while generating",
                got=f"one prompt of {len(prompts[positions[0]])} tokens and up to {decoding.max_new_tokens} new ones",
                remedy="lower max_new_tokens, load the model in bfloat16, or use a larger device",
            )
        batch_size = len(positions) // 2


@torch.no_grad()
def decode_batch(model: PreTrainedModel, prompts: Sequence[TokenIds], decoding: Decoding) -> list[TokenIds]:
    """The new tokens of each prompt, all in one batch; a row leaves the batch and the cache in the step it ends.

    That is why this is not `model.generate`, whose rows are computed until the slowest one ends. Measured on random
    models (12 layers, D=320, Llama and GLM-4-MoE; 96 prompts, batch 16, at most 64 new tokens, processor time on one
    core): equal when nearly all replies run to the limit (mean length 56), 1.2 to 1.3 times as fast at a mean length of
    34, 1.35 to 1.5 times at 13 to 19. The tokens were the same in all cases.
    """
    batch = _GreedyBatch(model, prompts, decoding.pad_id)
    rows: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))
    for _ in range(decoding.max_new_tokens):
        new = batch.step()
        for row, token in zip(alive, new, strict=True):
            rows[row].append(token)
        keep = [at for at, token in enumerate(new) if token not in decoding.eos_ids]
        if not keep:
            break
        if len(keep) < len(alive):
            batch.keep(keep)
            alive = [alive[at] for at in keep]
    return [tuple(row) for row in rows]


class _GreedyBatch:
    """Rows under way, with the cache that the model itself made: every kind of layer gets the right one."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[TokenIds], pad_id: int) -> None:
        # The class's forward: an instance's may be wrapped, and then it does not tell its arguments.
        accepted = inspect.signature(type(model).forward).parameters
        if "past_key_values" not in accepted:
            raise UnsupportedModelError(
                f"{type(model).__name__} cannot generate here",
                got="a forward pass without past_key_values",
                expected="a causal language model with a key-value cache",
            )
        self._model = model
        self._cache: Any = None
        self._takes_positions = "position_ids" in accepted
        # The output layer over every token of the prompt would cost more than the rest of a small model's prefill.
        self._options = {"use_cache": True} | ({"logits_to_keep": 1} if "logits_to_keep" in accepted else {})
        self._tokens_BT, self._mask_BT = _left_pad(prompts, pad_id, device=model.device)
        self._positions_BT = (self._mask_BT.cumsum(-1) - 1).clamp(min=0)

    def step(self) -> list[int]:
        """The next token of each row, which also becomes the next input."""
        positions = {"position_ids": self._positions_BT} if self._takes_positions else {}
        output = self._model(
            input_ids=self._tokens_BT,
            attention_mask=self._mask_BT,
            past_key_values=self._cache,
            **positions,
            **self._options,
        )
        self._cache = output.past_key_values
        next_B = output.logits[:, -1].argmax(dim=-1).to(self._mask_BT.device)
        self._tokens_BT = next_B[:, None]
        self._mask_BT = torch.nn.functional.pad(self._mask_BT, (0, 1), value=1)
        self._positions_BT = self._positions_BT[:, -1:] + 1
        return [int(token) for token in next_B.tolist()]

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows. A reordering of the cache by fewer rows is the call that every kind of layer has."""
        rows_B = torch.tensor(rows, device=self._mask_BT.device)
        self._cache.reorder_cache(rows_B)
        self._tokens_BT = self._tokens_BT[rows_B]
        self._mask_BT = self._mask_BT[rows_B]
        self._positions_BT = self._positions_BT[rows_B]


def _left_pad(prompts: Sequence[TokenIds], pad_id: int, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and attention mask (B, T), padded on the left so that every row's newest token is in the last column."""
    width = max(len(prompt) for prompt in prompts)
    tokens = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(tokens, device=device), torch.tensor(mask, device=device)


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout and router jitter; the mode the model was in comes back afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)

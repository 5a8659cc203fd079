"""Greedy replies by transformers' continuous batching: a waiting prompt takes the place of a reply that ends.

The cache has pages and a fixed size: without bounds transformers takes a share of all free memory.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from seawall.errors import SeawallError, UnsupportedModelError
from seawall.models.decoding import NOT_FINITE, Batches, BatchSize, Decoding, Loaded, TokenIds
from seawall.models.forward import contiguous_output_layer
from seawall.models.memory import is_out_of_memory
from seawall.models.replicas import holders, shared_results
from seawall.models.silence_libraries import silence_libraries

_PAGE = {"cpu": 32}
"""Tokens of a page by type of device; flash attention's decode kernel takes pages of 256."""
_DEFAULT_PAGE = 256
_BATCH = 16
"""Replies that are handed on together; each hand-over is a write to the disk."""
_SHARE = 4 * _BATCH
"""Maximum prompts of one turn of a process in a launch, whose replies are handed on together."""
_POLL = 1.0
_NO_END = -1
_LOGGER = "ContinuousBatchingLogger"


def page_tokens(device: str) -> int:
    """Tokens of a page of the cache on a type of device."""
    return _PAGE.get(device, _DEFAULT_PAGE)


@dataclass(frozen=True, slots=True)
class ContinuousReply:
    """The new tokens of one prompt, with their log probabilities in nats."""

    tokens: TokenIds
    log_probabilities: tuple[float, ...]

    @property
    def row(self) -> TokenIds:
        """The tokens as a decoder gives them: `NOT_FINITE` in place of the first whose probability is no number."""
        pairs = enumerate(self.log_probabilities)
        first = next((index for index, nats in pairs if not math.isfinite(nats)), None)
        return self.tokens if first is None else (*self.tokens[:first], NOT_FINITE)


@dataclass(frozen=True, slots=True)
class ContinuousDecoder:
    """A decoder by `generate_batch`'s machinery; hooks and changed weights of the model act on its replies.

    Attributes:
        cache_tokens: tokens of all prompts and replies in the cache at a time; at least the longest.
        batch_tokens: maximum tokens of a forward pass.
    """

    cache_tokens: int = 16384
    batch_tokens: int = 1024

    def __call__(
        self, loaded: Loaded, prompts: Sequence[TokenIds], decoding: Decoding, *, batch_size: BatchSize
    ) -> Batches:
        """Replies in the order in which they end; `batch_size` is not used.

        Where the model has copies in other processes, each process takes some prompts, in turns.

        Raises:
            UnsupportedModelError: transformers cannot serve this model so.
            SeawallError: a reply fails.
        """
        count = holders(loaded[0]).count
        if count > 1:
            yield from self._shared(
                loaded[0], prompts, decoding, size=min(_SHARE, max(1, math.ceil(len(prompts) / count)))
            )
            return
        positions: list[int] = []
        rows: list[TokenIds] = []
        for position, reply in self._replies(loaded[0], prompts, decoding):
            positions.append(position)
            rows.append(reply.row)
            if len(rows) == _BATCH:
                yield positions, rows
                positions, rows = [], []
        if rows:
            yield positions, rows

    def measured(
        self, model: PreTrainedModel, prompts: Sequence[TokenIds], decoding: Decoding
    ) -> list[ContinuousReply]:
        """The replies with their log probabilities, in order.

        Raises:
            UnsupportedModelError, SeawallError: as of a call.
        """
        replies = dict(self._replies(model, prompts, decoding))
        return [replies[position] for position in range(len(prompts))]

    def _shared(self, model: PreTrainedModel, prompts: Sequence[TokenIds], decoding: Decoding, *, size: int) -> Batches:
        turns = [list(range(len(prompts))[start : start + size]) for start in range(0, len(prompts), size)]
        texts = [[prompts[position] for position in turn] for turn in turns]
        yield from zip(turns, shared_results(model, partial(_tokens, self, decoding), texts), strict=True)

    def _replies(
        self, model: PreTrainedModel, prompts: Sequence[TokenIds], decoding: Decoding
    ) -> Iterator[tuple[int, ContinuousReply]]:
        """(position, reply) of every prompt."""
        if not prompts:
            return
        longest = max(len(prompt) + decoding.room(prompt) for prompt in prompts)
        with _manager(model, decoding, self._bounds(model, longest)) as manager:
            for position, prompt in enumerate(prompts):
                manager.add_request(list(prompt), request_id=str(position), max_new_tokens=decoding.room(prompt))
            for _ in prompts:
                result = _next_result(model, manager)
                yield int(result.request_id), ContinuousReply(tuple(result.generated_tokens), tuple(result.logprobs))

    def _bounds(self, model: PreTrainedModel, longest: int) -> ContinuousBatchingConfig:
        page = page_tokens(model.device.type)
        # One page more than the longest sequence: the scheduler reserves the place of the next token.
        pages = max(math.ceil(self.cache_tokens / page), math.ceil(longest / page) + 1)
        return ContinuousBatchingConfig(
            page_size=page,
            num_blocks=pages,
            max_batch_tokens=self.batch_tokens,
            max_requests_per_batch=min(pages, self.batch_tokens),
            return_logprobs=True,
            auto_switch_to_flash=False,  # the kernels would be fetched from the Hub, and round otherwise than ours
        )


def _tokens(
    decoder: ContinuousDecoder, decoding: Decoding, model: PreTrainedModel, prompts: Sequence[TokenIds]
) -> list[TokenIds]:
    return [reply.row for reply in decoder.measured(model, prompts, decoding)]


@contextmanager
def _manager(model: PreTrainedModel, decoding: Decoding, bounds: ContinuousBatchingConfig) -> Iterator[Any]:
    """A running manager; on exit its thread ends, the cache is freed, and the attention is as before.

    Raises:
        UnsupportedModelError: transformers refuses the model.
    """
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=decoding.max_new_tokens,
        eos_token_id=sorted(decoding.eos_ids) or _NO_END,
        pad_token_id=decoding.pad_id,
    )
    was_training = model.training
    with silence_libraries(), _quiet_logger(), contiguous_output_layer(model):
        try:
            manager = model.init_continuous_batching(generation_config=settings, continuous_batching_config=bounds)
        except (AttributeError, ValueError) as error:
            raise _unsupported(model, error) from error
        try:
            manager.start()
            yield manager
        finally:
            manager.stop(block=True, hard_stop=True)
            manager.destroy()
            model.train(was_training)


def _next_result(model: PreTrainedModel, manager: Any) -> Any:
    """The next reply that ends.

    Raises:
        UnsupportedModelError: the forward pass fails.
    """
    while True:
        result = manager.get_result(timeout=_POLL)
        if result is None:
            problem = manager.background_thread_status.fatal_error
            if problem is not None:
                raise _unsupported(model, problem)
        elif result.error is not None:
            raise _unsupported(model, result.error)
        elif result.is_finished():
            return result


def _unsupported(model: PreTrainedModel, problem: object) -> SeawallError:
    lines = str(problem).splitlines() or [type(problem).__name__]
    if isinstance(problem, MemoryError) or is_out_of_memory(RuntimeError(str(problem))):
        return SeawallError(
            "memory ran out while generating", got=lines[0][:200], remedy="lower engine.cache_tokens, or batch_tokens"
        )
    return UnsupportedModelError(
        f"transformers' continuous batching cannot serve {type(model).__name__}",
        got=lines[0][:200],
        expected="a causal language model whose layers all have full or sliding attention",
        remedy="set engine.kind=transformers",
    )


@contextmanager
def _quiet_logger() -> Iterator[None]:
    """Inside, the machinery logs nothing: its errors are raised by this module."""
    logger = logging.getLogger(_LOGGER)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)

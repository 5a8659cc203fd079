"""Replies of the loaded model: by our loop, or by another decoder of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from seawall.data.types import Messages
from seawall.evaluation.engines.reply import OnReplies, Reply
from seawall.models.decoding import Decoder, ReplyReader
from seawall.models.generate import BatchSize, Completion, generate, our_loop

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TransformersEngine:
    """Generates with a loaded model of transformers."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: BatchSize,
        decoder: Decoder | None = None,
    ) -> None:
        """Wraps a loaded model, which is left unchanged.

        Args:
            model: any causal language model with a key-value cache.
            tokenizer: its tokenizer, with a chat template.
            batch_size: as in `models.generate.generate`.
            decoder: generates the replies; None takes our loop.
        """
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size: BatchSize = batch_size
        self._decoder: Decoder = decoder or our_loop
        self._reader = ReplyReader(tokenizer)

    def __call__(
        self, prompts: Sequence[Messages], *, max_new_tokens: int, lengths: Sequence[int], on_replies: OnReplies
    ) -> None:
        """Replies to all prompts, in our loop longest first.

        Raises:
            UnsupportedModelError: the model has no key-value cache.
            SeawallError: one prompt alone exceeds memory.
            DataError: the chat template refuses a prompt.
        """

        def on_batch(positions: Sequence[int], completions: Sequence[Completion]) -> None:
            on_replies(positions, [self._reply(completion, lengths) for completion in completions])

        generate(
            self._model,
            self._tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_size=self._batch_size,
            decoder=self._decoder,
            on_batch=on_batch,
        )

    def _reply(self, completion: Completion, lengths: Sequence[int]) -> Reply:
        cuts = {
            length: self._reader.cut(completion, length) for length in lengths if length < len(completion.token_ids)
        }
        tokens = len(completion.token_ids)
        return Reply(
            completion.answer, completion.ended, tokens, cuts, thought=completion.thought, unscored=completion.unscored
        )

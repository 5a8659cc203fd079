"""Replies that the loaded model generates here: prompts of like length together, with a key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from seawall.data.types import Messages
from seawall.evaluation.engines.reply import OnReplies, Reply
from seawall.models.generate import BatchSize, Completion, generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TransformersEngine:
    """Generates with a model of transformers."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: BatchSize) -> None:
        """Take a loaded model, which is left as it was.

        Args:
            model: any causal language model with a key-value cache.
            tokenizer: its tokenizer, with a chat template.
            batch_size: as `models.generate.generate` takes it.
        """
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size: BatchSize = batch_size

    def __call__(
        self, prompts: Sequence[Messages], *, max_new_tokens: int, lengths: Sequence[int], on_replies: OnReplies
    ) -> None:
        """Reply to all prompts, those with the longest first.

        Raises:
            UnsupportedModelError: the model keeps no key-value cache.
            SeawallError: memory is too small even for one prompt.
            DataError: the chat template cannot take a prompt.
        """
        generate(
            self._model,
            self._tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_size=self._batch_size,
            on_batch=lambda at, done: on_replies(at, [self._reply(one, lengths) for one in done]),
        )

    def _reply(self, one: Completion, lengths: Sequence[int]) -> Reply:
        cuts = {
            length: str(self._tokenizer.decode(list(one.token_ids[:length]), skip_special_tokens=True))
            for length in lengths
            if length < len(one.token_ids)
        }
        return Reply(one.text, one.ended, len(one.token_ids), cuts)

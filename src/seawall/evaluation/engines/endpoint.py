"""Replies of a model behind an OpenAI-compatible endpoint: vLLM, SGLang, TGI, `transformers serve`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seawall.config.engine import EndpointEngine as EndpointConfig
from seawall.data.answers import ReplyParts, split_reply
from seawall.data.types import Messages
from seawall.errors import ConfigError
from seawall.evaluation.answers import AnswerLog, request_answers
from seawall.evaluation.endpoint import Answer, Endpoint
from seawall.evaluation.engines.reply import OnReplies, Reply
from seawall.runs.files import canonical_hash

_OPENED = "<think>"
_ROUNDS = 4
"""Requests per batch, in multiples of the maximum number of concurrent requests."""


class EndpointEngine:
    """Sends concurrent requests to an endpoint. Every answer is saved before use, so no request is sent twice."""

    def __init__(self, config: EndpointConfig, folder: Path | None = None) -> None:
        """Opens the saved answers; sends nothing.

        Args:
            config: the endpoint and its settings.
            folder: folder of saved answers; None keeps them in memory.

        Raises:
            ConfigError: the environment variable of the key is not set, or the address is invalid.
            ArtifactError: the saved answers are damaged.
        """
        self._config = config
        self._endpoint = Endpoint(config, "eval.engine")
        self._log = AnswerLog(folder)

    def __call__(
        self, prompts: Sequence[Messages], *, max_new_tokens: int, lengths: Sequence[int], on_replies: OnReplies
    ) -> None:
        """Replies to all prompts. A prompt without an answer after all attempts gets a reply with a `problem`.

        Raises:
            ConfigError: the endpoint rejects the key, the address or the model, or does not return the tokens that
                `lengths` require.
        """
        cut_at = [length for length in lengths if length < max_new_tokens]
        bodies = [self._body(prompt, max_new_tokens, pieces=bool(cut_at)) for prompt in prompts]
        size = _ROUNDS * self._config.concurrency
        for start in range(0, len(bodies), size):
            batch = bodies[start : start + size]
            keys = [canonical_hash(body) for body in batch]
            answers = request_answers(self._endpoint, dict(zip(keys, batch, strict=True)), self._log)
            replies = [self._reply(answers[key], cut_at) for key in keys]
            on_replies(range(start, start + len(batch)), replies)

    def _body(self, prompt: Messages, max_new_tokens: int, *, pieces: bool) -> dict[str, Any]:
        body = self._endpoint.body([message.as_dict() for message in prompt], max_new_tokens)
        return body | ({"logprobs": True} if pieces else {})

    def _reply(self, answer: Answer, lengths: Sequence[int]) -> Reply:
        if answer.problem is not None:
            return Reply("", None, None, problem=answer.problem, final=answer.final)
        ended = None if answer.finish is None else answer.finish != "length"
        cuts = self._cuts(answer, lengths) if lengths and (answer.text or answer.thought) else {}
        return Reply(answer.text or "", ended, answer.tokens, cuts, thought=answer.thought, unscored=answer.unscored)

    def _cuts(self, answer: Answer, lengths: Sequence[int]) -> Mapping[int, ReplyParts]:
        """The reply cut at each length. Some servers list the end token too, which adds no text."""
        if answer.pieces is None:
            raise ConfigError(
                f"the endpoint {self._config.base_url} does not return the tokens of a reply",
                got="no logprobs in its answer",
                expected="logprobs, with which eval.lengths cuts replies",
                remedy="leave out eval.lengths, or use a server that returns logprobs",
            )
        pieces = answer.pieces
        texts = {length: b"".join(pieces[:length]).decode("utf-8", "replace") for length in lengths}
        # A reply with a thought begins inside it, with or without a mark in its text.
        opened = _OPENED if answer.thought else ""
        return {
            length: split_reply(text, opened="" if text.lstrip().startswith("<") else opened)
            for length, text in texts.items()
            if length < len(pieces)
        }

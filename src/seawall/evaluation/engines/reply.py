"""The interface of engines, and their replies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from seawall.data.answers import ReplyParts
from seawall.data.types import Messages


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply.

    Attributes:
        text: the answer: the reply after its thought; empty where there is none.
        ended: whether the model ended the reply itself, below the token limit; None if unknown.
        tokens: number of tokens; None if unknown.
        cuts: length -> the parts of the reply cut at that number of tokens, for requested lengths below the reply's.
        problem: why there is no reply.
        final: whether a retry is useless.
        thought: the reply's reasoning.
        unscored: why no judge may score the reply; empty where it has an answer.
    """

    text: str
    ended: bool | None
    tokens: int | None
    cuts: Mapping[int, ReplyParts] = field(default_factory=dict)
    problem: str | None = None
    final: bool = True
    thought: str = ""
    unscored: str = ""

    def after(self, length: int) -> ReplyParts:
        """The parts of the reply cut at `length` tokens, one of the requested lengths."""
        return self.cuts.get(length, ReplyParts(self.text, self.thought, self.unscored))


OnReplies = Callable[[Sequence[int], Sequence[Reply]], None]
"""Called after every batch with the positions of its prompts and their replies, to judge and save them."""


class Engine(Protocol):
    """An engine: generates greedy replies to conversations, batch by batch."""

    def __call__(
        self, prompts: Sequence[Messages], *, max_new_tokens: int, lengths: Sequence[int], on_replies: OnReplies
    ) -> None:
        """Replies to all prompts, each in one batch, in any order.

        Args:
            prompts: conversations that end with a user turn.
            max_new_tokens: maximum length of a reply, in tokens.
            lengths: further lengths in tokens at which to cut the text.
            on_replies: called after every batch.
        """
        ...

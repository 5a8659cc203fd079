"""What every engine gives back, and what every engine is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from seawall.data.types import Messages


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply.

    Attributes:
        text: what was written; empty where there is no reply.
        ended: whether the model ended it, and the limit did not; None where that is not known.
        tokens: how many it has; None where that is not known.
        cuts: the text after so many tokens, for every wanted length that the reply is longer than.
        problem: why there is no reply.
        final: whether asking again would be no use.
    """

    text: str
    ended: bool | None
    tokens: int | None
    cuts: Mapping[int, str] = field(default_factory=dict)
    problem: str | None = None
    final: bool = True

    def after(self, length: int) -> str:
        """The text as it was after so many tokens, one of the wanted lengths."""
        return self.cuts.get(length, self.text)


OnReplies = Callable[[Sequence[int], Sequence[Reply]], None]
"""Given, after every batch, the positions of its prompts and their replies: the place to judge and to keep them."""


class Engine(Protocol):
    """Any engine: greedy replies to conversations, handed over batch by batch."""

    def __call__(
        self, prompts: Sequence[Messages], *, max_new_tokens: int, lengths: Sequence[int], on_replies: OnReplies
    ) -> None:
        """Reply to all prompts; each is in one batch, in any order.

        Args:
            prompts: conversations that end with a user turn.
            max_new_tokens: where a reply is cut, in tokens.
            lengths: at which numbers of tokens the text is wanted, too.
            on_replies: called after every batch.
        """
        ...

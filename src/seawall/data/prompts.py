"""The four kinds of prompts of a run: harmful goals, benign instructions, borderline prompts, gold questions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

from seawall.data.splits import SplitName
from seawall.data.types import Exchange, Messages, user


@dataclass(frozen=True, slots=True)
class Request:
    """What every prompt has.

    Attributes:
        id: unique in its source.
        text: the last message of the user.
        context: the messages before it, mostly none: a system message, earlier turns.
    """

    id: str
    text: str
    context: Messages = field(default=(), kw_only=True)

    @property
    def prompt(self) -> Messages:
        """The conversation that a model is asked."""
        return (*self.context, *user(self.text))


RequestKind = Literal["harmful", "benign", "borderline"]
"""The kind of a request; borderline ones are harmless."""
BORDERLINE_REQUEST: RequestKind = "borderline"


@dataclass(frozen=True, slots=True)
class Goal(Request):
    """A harmful goal as a plain request, which should be refused; attacks wrap it."""

    category: str = ""
    split: SplitName | None = None


@dataclass(frozen=True, slots=True)
class Benign(Request):
    """A harmless instruction. `imperative`: whether it is a command, which attack wrappings fit; None: unknown."""

    category: str = ""
    split: SplitName | None = None
    imperative: bool | None = None


@dataclass(frozen=True, slots=True)
class Borderline(Request):
    """A prompt that sounds unsafe but is safe; refusing it is over-refusal. `unsafe_twin` may be empty."""

    category: str = ""
    split: SplitName | None = None
    unsafe_twin: str = ""


@dataclass(frozen=True, slots=True)
class Gold:
    """A question with a reference answer, whose loss measures capability."""

    id: str
    question: str
    answer: str
    context: Messages = ()

    @property
    def text(self) -> str:
        """The question, which identifies the item."""
        return self.question

    @property
    def exchange(self) -> Exchange:
        """Question and answer as a conversation."""
        return Exchange((*self.context, *user(self.question)), self.answer, self.question)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over roles and texts of question and answer."""
        texts = [text for message in self.exchange.prompt for text in (message.role, message.content)]
        return hashlib.sha256("\0".join([*texts, self.answer]).encode()).hexdigest()[:16]

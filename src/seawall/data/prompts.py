"""The four kinds of prompts of a run: harmful goals, benign instructions, borderline prompts, gold questions."""

from __future__ import annotations

from dataclasses import dataclass

from seawall.data.splits import SplitName
from seawall.data.types import Exchange, user


@dataclass(frozen=True, slots=True)
class Goal:
    """A harmful goal as a plain request, which should be refused; attacks wrap it."""

    id: str
    text: str
    category: str = ""
    split: SplitName | None = None


@dataclass(frozen=True, slots=True)
class Benign:
    """A harmless instruction. `imperative`: whether it is a command, which attack wrappings fit; None: unknown."""

    id: str
    text: str
    category: str = ""
    split: SplitName | None = None
    imperative: bool | None = None


@dataclass(frozen=True, slots=True)
class Borderline:
    """A prompt that sounds unsafe but is safe; refusing it is over-refusal. `unsafe_twin` may be empty."""

    id: str
    text: str
    category: str = ""
    split: SplitName | None = None
    unsafe_twin: str = ""


@dataclass(frozen=True, slots=True)
class Gold:
    """A question with a reference answer, whose loss measures capability."""

    id: str
    question: str
    answer: str

    @property
    def text(self) -> str:
        """The question, which identifies the item."""
        return self.question

    @property
    def exchange(self) -> Exchange:
        """Question and answer as a conversation."""
        return Exchange(user(self.question), self.answer, self.question)

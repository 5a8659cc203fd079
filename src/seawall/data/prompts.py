"""The four kinds of prompts a run needs: harmful goals, benign instructions, borderline prompts, gold questions."""

from __future__ import annotations

from dataclasses import dataclass

from seawall.data.splits import SplitName
from seawall.data.types import Exchange, user


@dataclass(frozen=True, slots=True)
class Goal:
    """A harmful goal, asked plainly; attacks wrap it. It should be refused."""

    id: str
    text: str
    category: str = ""
    split: SplitName | None = None


@dataclass(frozen=True, slots=True)
class Benign:
    """A harmless instruction. `imperative`: it is a command, so attack wrappers read well around it; None: unknown."""

    id: str
    text: str
    category: str = ""
    split: SplitName | None = None
    imperative: bool | None = None


@dataclass(frozen=True, slots=True)
class Borderline:
    """A prompt that sounds unsafe and is safe; refusing it is over-refusal. Its `unsafe_twin` may be empty."""

    id: str
    text: str
    category: str = ""
    split: SplitName | None = None
    unsafe_twin: str = ""


@dataclass(frozen=True, slots=True)
class Gold:
    """A question and the reference answer whose loss measures capability."""

    id: str
    question: str
    answer: str

    @property
    def text(self) -> str:
        """The question: what identifies it."""
        return self.question

    @property
    def exchange(self) -> Exchange:
        """Question and answer as a conversation."""
        return Exchange(user(self.question), self.answer, self.question)

"""What a conversation, a safety pair and a verdict are. Everything above this layer speaks in these types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Role = Literal["system", "user", "assistant"]
"""Who speaks, as chat templates name it."""

VerdictLabel = Literal["refused", "complied", "unscored"]
"""`unscored` is a value of its own: an empty or degenerate reply counts neither as a refusal nor as a success."""

NO_ANSWER = "no answer: "
"""How the reason of an unscored verdict begins that a judge could not give yet: it is worth asking again."""

NO_REPLY = "no reply: "
"""How the reason of an unscored verdict begins where an engine has no reply of the model."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, as in TRL's and the Hub's `messages` column."""

    role: Role
    content: str

    def as_dict(self) -> dict[str, str]:
        """The form that chat templates take."""
        return {"role": self.role, "content": self.content}


Messages = tuple[Message, ...]
Attack = Callable[[str], Messages]
"""An attack family: a harmful goal in the imperative -> the conversation that asks for it in disguise."""


@dataclass(frozen=True, slots=True)
class SafetyPair:
    """One harmful goal, asked plainly (`plain`) and by a jailbreak (`attack`). RASA section 3.1."""

    goal: str
    plain: Messages
    attack: Messages
    attack_name: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt and the reply that training should produce, with the goal that intervals are clustered by."""

    prompt: Messages
    response: str
    goal: str = ""
    ended: bool = True
    """False for a reply that was cut at the length limit: its end is not to be learned."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says of one reply.

    Attributes:
        label: what the reply is.
        reason: why.
        judge: who says it.
        harm: how much harm the reply does, in [0, 1]; None where the judge does not say.
        disputed: whether the judges of an ensemble differ; None where fewer than two scored the reply.
    """

    label: VerdictLabel
    reason: str
    judge: str
    harm: float | None = None
    disputed: bool | None = None


class Judge(Protocol):
    """Any judge: a name, and a function of prompts and replies. It never raises for what a model wrote."""

    @property
    def name(self) -> str:
        """What the judge is called in recipes and verdicts."""
        ...

    def __call__(self, prompts: Sequence[Messages], responses: Sequence[str]) -> list[Verdict]:
        """One verdict per reply, in order."""
        ...


def user(content: str) -> Messages:
    """A conversation of one user turn."""
    return (Message("user", content),)

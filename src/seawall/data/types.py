"""The basic types of seawall: conversations, safety pairs, verdicts and judges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Role = Literal["system", "user", "assistant"]
"""The speaker of a message, as chat templates name it."""

VerdictLabel = Literal["refused", "complied", "unscored"]
"""`complied`: the reply gives, at least in part, what was asked. `unscored`: neither that nor a refusal.

What is unscored either evades (`EVADES`) or cannot be judged: empty, noise, another language, no answer of the judge.
"""

Outcome = Literal["refused", "complied", "evades", "unscored"]
"""What a verdict means for a rate: a reply that evades is known to be neither, one that cannot be judged is unknown."""

EVADES = "evades: "
"""Prefix of the reason of an unscored verdict on a reply that neither refuses nor gives what was asked: an echo of the
request, a bare opener, a question back, another topic, fiction that never gets there."""

NO_ANSWER = "no answer: "
"""Prefix of the reason of an unscored verdict where the judge could not be reached; a retry may give a verdict."""

NO_REPLY = "no reply: "
"""Prefix of the reason of an unscored verdict where the engine returned no reply."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, as in TRL's and the Hub's `messages` column."""

    role: Role
    content: str

    def as_dict(self) -> dict[str, str]:
        """The message as chat templates take it."""
        return {"role": self.role, "content": self.content}


Messages = tuple[Message, ...]
Attack = Callable[[str], Messages]
"""An attack family: a harmful goal in the imperative -> a conversation that asks for it in disguise."""


@dataclass(frozen=True, slots=True)
class SafetyPair:
    """One harmful goal, asked plainly (`plain`) and by a jailbreak (`attack`). RASA section 3.1."""

    goal: str
    plain: Messages
    attack: Messages
    attack_name: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt with its target reply; `goal` clusters the exchanges for intervals."""

    prompt: Messages
    response: str
    goal: str = ""
    ended: bool = True
    """False for a reply that was cut at the length limit, whose end must not be trained on."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's verdict on one reply.

    Attributes:
        label: refused, complied or unscored.
        reason: the judge's reason.
        judge: name of the judge.
        harm: harmfulness of the reply in [0, 1]; None where the judge does not rate it.
        disputed: whether the judges of an ensemble disagree; None where fewer than two scored the reply.
    """

    label: VerdictLabel
    reason: str
    judge: str
    harm: float | None = None
    disputed: bool | None = None

    @property
    def outcome(self) -> Outcome:
        """The label, with unscored replies that evade told apart."""
        return outcome(self.label, self.reason)


def outcome(label: VerdictLabel, reason: str) -> Outcome:
    """What a verdict means for a rate."""
    return "evades" if label == "unscored" and reason.startswith(EVADES) else label


def label_of(result: Outcome) -> VerdictLabel:
    """The label of a reply with an outcome."""
    return "unscored" if result == "evades" else result


class Judge(Protocol):
    """A judge: a named function of prompts and replies. It never raises because of a reply's content.

    `goals` says what each prompt asks for in plain words, where a prompt disguises it; without it, the prompts do.
    """

    @property
    def name(self) -> str:
        """The judge's name in recipes and verdicts."""
        ...

    def __call__(
        self, prompts: Sequence[Messages], responses: Sequence[str], goals: Sequence[str] | None = None
    ) -> list[Verdict]:
        """One verdict per reply, in order."""
        ...


def framed(context: Messages, prompt: Messages) -> Messages:
    """A prompt after the system message of a context, unless it has one."""
    has_system = prompt[0].role == "system"
    return (*(message for message in context[:1] if message.role == "system" and not has_system), *prompt)


def user(content: str) -> Messages:
    """A conversation with a single user turn."""
    return (Message("user", content),)

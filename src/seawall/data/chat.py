"""Reads chat JSONL in the format of TRL and the Hub: one object per line, with the conversation in `messages`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from seawall.data.columns import require_whole
from seawall.data.files import Row, json_lines, short_repr, text_problem
from seawall.data.types import Exchange, Message, Messages, Role

ROLES: tuple[Role, ...] = ("system", "user", "assistant")
_OWN_FIELDS = ("messages", "goal", "attack", "attack_name")

Ending = Literal["user", "assistant", "any"]
"""Role of the last message: `user` in prompts, `assistant` in training examples."""


@dataclass(frozen=True, slots=True)
class ChatRow:
    """One conversation of a file. `attack` names its attack family; `extra` holds the fields that seawall ignores."""

    messages: Messages
    goal: str | None
    attack: str | None
    extra: dict[str, object] = field(compare=False)
    line: int
    path: str = ""

    @property
    def where(self) -> str:
        """`file:line`, for error messages."""
        return f"{self.path}:{self.line}"


def read_chat_jsonl(path: str | Path, *, ending: Ending = "user") -> list[ChatRow]:
    """The conversations of a file as a list; see `iter_chat_jsonl`."""
    return list(iter_chat_jsonl(path, ending=ending))


def iter_chat_jsonl(path: str | Path, *, ending: Ending = "user") -> Iterator[ChatRow]:
    """The conversations of a file, read line by line.

    Args:
        path: JSONL with `messages` (a list of `role` and `content`) and, for attacks, `goal` and `attack` (or
            `attack_name`).
        ending: required role of the last message.

    Raises:
        DataError: a line is no such conversation (`file:line: ...`), or the file has no line.
    """
    empty = True
    for row in json_lines(Path(path)):
        empty = False
        yield _chat_row(row, str(path), ending)
    if empty:
        raise Row({}, str(path), 0).error(
            "no conversation in the file", got="no lines", expected="one JSON object per line"
        )


def to_exchange(row: ChatRow) -> Exchange:
    """A conversation that ends with the assistant, as prompt and reply."""
    assert row.messages[-1].role == "assistant"
    return Exchange(row.messages[:-1], row.messages[-1].content, row.goal or "")


def _chat_row(row: Row, path: str, ending: Ending) -> ChatRow:
    require_whole(row, used=("messages",))
    messages = messages_of(row)
    check_order(row, messages, ending)
    attack = "attack" if "attack" in row.fields else "attack_name"
    return ChatRow(
        messages=messages,
        goal=row.text("goal") if row.fields.get("goal") is not None else None,
        attack=row.text(attack) if row.fields.get(attack) is not None else None,
        extra={name: value for name, value in row.fields.items() if name not in _OWN_FIELDS},
        line=row.number,
        path=path,
    )


def messages_of(row: Row, name: str = "messages") -> Messages:
    """The conversation in a field.

    Raises:
        DataError: the field is missing or holds no conversation.
    """
    value = row.fields.get(name)
    if name not in row.fields:
        names = ", ".join(map(repr, row.fields)) or "no fields"
        raise row.error(
            f"field {name!r} is missing",
            got=names,
            remedy=f"rename the field that holds the conversation to {name!r}",
        )
    if not isinstance(value, list) or not value:
        raise row.error(
            f"{name!r} is not a conversation",
            got=short_repr(value),
            expected='[{"role": "user", "content": "..."}, ...]',
        )
    return tuple(_message(row, message, number) for number, message in enumerate(value, start=1))


def _message(row: Row, message: object, number: int) -> Message:
    if not isinstance(message, dict):
        raise row.error(
            f"message {number} is not an object", got=short_repr(message), expected='{"role": "...", "content": "..."}'
        )
    role, content = message.get("role"), message.get("content")
    known_role = next((name for name in ROLES if name == role), None)
    if known_role is None:
        raise row.error(
            f"message {number} has no known role", got=short_repr(role), expected="system, user or assistant"
        )
    if not isinstance(content, str) or not content.strip():
        raise row.error(
            f"message {number} has no text",
            got=short_repr(content),
            expected="text in 'content'",
            remedy="remove the message, or replace it with text",
        )
    problem = text_problem(content)
    if problem is not None:
        raise row.error(f"message {number} holds {problem}", expected="plain text", remedy="remove the character")
    _refuse_extra_fields(row, message, number)
    return Message(known_role, content)


def _refuse_extra_fields(row: Row, message: dict[str, object], number: int) -> None:
    """Refuses, rather than drops, fields such as tool calls and weights: they change the meaning of a conversation."""
    extra = [name for name, value in message.items() if name not in ("role", "content") and value is not None]
    if extra:
        raise row.error(
            f"message {number} has unsupported fields",
            got=", ".join(map(repr, extra)),
            expected="'role' and 'content' alone",
            remedy="remove the other fields",
        )


def check_order(row: Row, messages: Messages, ending: Ending) -> None:
    """Checks that user and assistant alternate after an optional system message, and who speaks last.

    Raises:
        DataError: a message is out of turn.
    """
    first = 1 if messages[0].role == "system" else 0
    for index, message in enumerate(messages[first:], start=first):
        expected = "user" if (index - first) % 2 == 0 else "assistant"
        if message.role != expected:
            raise row.error(
                f"message {index + 1} is out of turn",
                got=message.role,
                expected=f"{expected} (after an optional system message, user and assistant alternate)",
            )
    if len(messages) == first:
        raise row.error("no message follows the system message", got="system", expected="a user message")
    if ending not in ("any", messages[-1].role):
        raise row.error(
            "the last message has the wrong role", got=messages[-1].role, expected=f"a last message of the {ending}"
        )

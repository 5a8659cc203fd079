"""Chat JSONL as TRL and the Hub use it: one object a line, with the conversation in `messages`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from seawall.data.files import Row, json_lines, short_repr, text_problem
from seawall.data.types import Exchange, Message, Messages, Role

ROLES: tuple[Role, ...] = ("system", "user", "assistant")
_OWN_FIELDS = ("messages", "goal", "attack", "attack_name")

Ending = Literal["user", "assistant", "any"]
"""Who speaks last: `user` in prompts, `assistant` in exchanges to train on."""


@dataclass(frozen=True, slots=True)
class ChatRow:
    """One conversation of a file. `attack` is the name of its attack family, `extra` every field not used here."""

    messages: Messages
    goal: str | None
    attack: str | None
    extra: dict[str, object] = field(compare=False)
    line: int
    path: str = ""

    @property
    def where(self) -> str:
        """`file:line`, for messages."""
        return f"{self.path}:{self.line}"


def read_chat_jsonl(path: str | Path, *, ending: Ending = "user") -> list[ChatRow]:
    """Every conversation of a file; see `iter_chat_jsonl`."""
    return list(iter_chat_jsonl(path, ending=ending))


def iter_chat_jsonl(path: str | Path, *, ending: Ending = "user") -> Iterator[ChatRow]:
    """The conversations of a file, one line in memory at a time.

    Args:
        path: JSONL with `messages` (a list of `role` and `content`) and, for attacks, `goal` and `attack`
            (`attack_name` is understood too).
        ending: who must speak last.

    Raises:
        DataError: `file:line: ...` for anything that is not such a conversation; also for a file with none.
    """
    empty = True
    for row in json_lines(Path(path)):
        empty = False
        yield _chat_row(row, str(path), ending)
    if empty:
        raise Row({}, str(path), 0).error(
            "no conversation in the file", got="no lines", expected="one JSON object a line"
        )


def to_exchange(row: ChatRow) -> Exchange:
    """A conversation that ends with the assistant, as prompt and reply."""
    assert row.messages[-1].role == "assistant"
    return Exchange(row.messages[:-1], row.messages[-1].content, row.goal or "")


def _chat_row(row: Row, path: str, ending: Ending) -> ChatRow:
    messages = _messages(row)
    _check_order(row, messages, ending)
    attack = "attack" if "attack" in row.fields else "attack_name"
    return ChatRow(
        messages=messages,
        goal=row.text("goal") if row.fields.get("goal") is not None else None,
        attack=row.text(attack) if row.fields.get(attack) is not None else None,
        extra={name: value for name, value in row.fields.items() if name not in _OWN_FIELDS},
        line=row.number,
        path=path,
    )


def _messages(row: Row) -> Messages:
    value = row.fields.get("messages")
    if "messages" not in row.fields:
        names = ", ".join(map(repr, row.fields)) or "no fields"
        raise row.error("field 'messages' is missing", got=names, remedy="name the conversation 'messages'")
    if not isinstance(value, list) or not value:
        raise row.error(
            "'messages' is not a conversation",
            got=short_repr(value),
            expected='[{"role": "user", "content": "..."}, ...]',
        )
    return tuple(_message(row, item, at) for at, item in enumerate(value, start=1))


def _message(row: Row, item: object, at: int) -> Message:
    if not isinstance(item, dict):
        raise row.error(
            f"message {at} is not an object", got=short_repr(item), expected='{"role": "...", "content": "..."}'
        )
    role, content = item.get("role"), item.get("content")
    known = next((name for name in ROLES if name == role), None)
    if known is None:
        raise row.error(f"message {at} has no usable role", got=short_repr(role), expected="system, user or assistant")
    if not isinstance(content, str) or not content.strip():
        raise row.error(
            f"message {at} has no text",
            got=short_repr(content),
            expected="text in 'content'",
            remedy="seawall reads text only",
        )
    problem = text_problem(content)
    if problem is not None:
        raise row.error(f"message {at} holds {problem}", expected="plain text", remedy="remove it")
    _check_no_more(row, item, at)
    return Message(known, content)


def _check_no_more(row: Row, item: dict[str, object], at: int) -> None:
    """A tool call or a weight changes what a conversation means: it is refused rather than dropped."""
    more = [name for name, value in item.items() if name not in ("role", "content") and value is not None]
    if more:
        raise row.error(
            f"message {at} has more than a role and a text",
            got=", ".join(map(repr, more)),
            expected="'role' and 'content'",
            remedy="remove the other fields",
        )


def _check_order(row: Row, messages: Messages, ending: Ending) -> None:
    first = 1 if messages[0].role == "system" else 0
    for at, message in enumerate(messages[first:], start=first):
        expected = "user" if (at - first) % 2 == 0 else "assistant"
        if message.role != expected:
            raise row.error(
                f"message {at + 1} is out of turn",
                got=message.role,
                expected=f"{expected} (after an optional system message, user and assistant alternate)",
            )
    if len(messages) == first:
        raise row.error("nothing follows the system message", got="system", expected="a user message")
    if ending not in ("any", messages[-1].role):
        raise row.error(
            f"the last message is not the {ending}'s", got=messages[-1].role, expected=f"{ending} to speak last"
        )

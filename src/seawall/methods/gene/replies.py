"""The aligned model's replies that a gene is distilled from, and their file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seawall.data.prompts import RequestKind
from seawall.data.splits import SplitName
from seawall.data.types import Exchange, Message
from seawall.runs.files import read_metrics, write_metrics


@dataclass(frozen=True, slots=True)
class TeacherReply:
    """One exchange, and the split and the kind of its prompt."""

    part: SplitName
    kind: RequestKind
    exchange: Exchange


def write_replies(path: Path, replies: Sequence[TeacherReply]) -> None:
    """Writes the replies as JSONL."""
    write_metrics(path, [_row(reply) for reply in replies])


def read_replies(path: Path) -> list[TeacherReply]:
    """Reads a file that `write_replies` wrote.

    Raises:
        ArtifactError: the file is damaged.
    """
    replies = []
    for row in read_metrics(path):
        prompt = tuple(Message(message["role"], message["content"]) for message in row["messages"])
        exchange = Exchange(prompt, row["response"], prompt[-1].content, row["ended"])
        kind: RequestKind = row["kind"] if "kind" in row else "harmful" if row["harmful"] else "benign"
        replies.append(TeacherReply(row["part"], kind, exchange))
    return replies


def _row(reply: TeacherReply) -> dict[str, object]:
    return {
        "part": reply.part,
        "kind": reply.kind,
        "messages": [message.as_dict() for message in reply.exchange.prompt],
        "response": reply.exchange.response,
        "ended": reply.exchange.ended,
    }

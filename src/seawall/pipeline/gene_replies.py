"""An aligned model's replies on disk: refusals of harm and answers to the rest, nothing harmful."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seawall.data.splits import SplitName
from seawall.data.types import Exchange, Message
from seawall.runs.metrics import read_metrics, write_metrics


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply, whether its prompt asks for harm, and the part that the prompt is of."""

    part: SplitName
    harmful: bool
    exchange: Exchange


def write_replies(path: Path, replies: Sequence[Reply]) -> None:
    """One JSON object a line."""
    write_metrics(
        path,
        [
            {
                "part": one.part,
                "harmful": one.harmful,
                "messages": [message.as_dict() for message in one.exchange.prompt],
                "response": one.exchange.response,
                "ended": one.exchange.ended,
            }
            for one in replies
        ],
    )


def read_replies(path: Path) -> list[Reply]:
    """What `write_replies` wrote.

    Raises:
        ArtifactError: the file is damaged.
    """
    found = []
    for row in read_metrics(path):
        prompt = tuple(Message(one["role"], one["content"]) for one in row["messages"])
        exchange = Exchange(prompt, row["response"], prompt[-1].content, row["ended"])
        found.append(Reply(row["part"], row["harmful"], exchange))
    return found

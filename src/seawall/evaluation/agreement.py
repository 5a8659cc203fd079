"""How far a judge agrees with labels made by reading, by kind of reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from seawall.data.chat import check_order, messages_of
from seawall.data.files import Row, rows
from seawall.data.types import Judge, Messages, Outcome, Verdict, user
from seawall.errors import DataError
from seawall.evaluation.intervals import exact_interval

_REPLY_FIELDS = ("response", "reply", "completion", "text")
_LABEL_FIELDS = ("expected", "label")
_KIND_FIELDS = ("kind", "group")


@dataclass(frozen=True, slots=True)
class LabelledReply:
    """A reply with the outcome that a reader gave it.

    Attributes:
        prompt: the conversation that the reply answers.
        goal: what the prompt asks for in plain words; None where the prompt itself does.
        response: the reply.
        expected: the reader's outcome; `unscored` allows that the reply evades.
        kind: kind of reply, for the table.
        where: file and line.
    """

    prompt: Messages
    goal: str | None
    response: str
    expected: Outcome
    kind: str
    where: str


@dataclass(frozen=True, slots=True)
class Judged:
    """A labelled reply and the judge's verdict on it."""

    reply: LabelledReply
    verdict: Verdict

    @property
    def agrees(self) -> bool:
        """Whether the verdict is the reader's; a reader's `unscored` also holds for a reply that evades."""
        expected = self.reply.expected
        return self.verdict.label == "unscored" if expected == "unscored" else self.verdict.outcome == expected


@dataclass(frozen=True, slots=True)
class Agreement:
    """The agreement of a judge with a reader.

    Attributes:
        judge: name of the judge.
        judged: every labelled reply with its verdict.
    """

    judge: str
    judged: tuple[Judged, ...]

    @property
    def kinds(self) -> list[str]:
        """The kinds of replies, in the order of the file."""
        return list(dict.fromkeys(row.reply.kind for row in self.judged))

    def of_kind(self, kind: str) -> list[Judged]:
        """The replies of one kind."""
        return [row for row in self.judged if row.reply.kind == kind]

    def document(self) -> dict[str, Any]:
        """The agreement as one JSON object; holds no reply."""
        low, high = exact_interval(_agreeing(self.judged), len(self.judged))
        return {
            "judge": self.judge,
            "replies": len(self.judged),
            "agree": _agreeing(self.judged),
            "agreement": _agreeing(self.judged) / len(self.judged),
            "low": low,
            "high": high,
            "kinds": {
                kind: {"replies": len(self.of_kind(kind)), "agree": _agreeing(self.of_kind(kind))}
                for kind in self.kinds
            },
            "disagreements": [
                {
                    "where": row.reply.where,
                    "expected": row.reply.expected,
                    "verdict": row.verdict.outcome,
                    "reason": row.verdict.reason,
                }
                for row in self.judged
                if not row.agrees
            ],
        }


def _agreeing(judged: Sequence[Judged]) -> int:
    return sum(row.agrees for row in judged)


def read_labelled(path: Path) -> list[LabelledReply]:
    """The labelled replies of a JSONL or CSV file.

    Every row has `prompt` (text, or messages; null where it is unknown), `response` (or `reply`, `completion`, `text`)
    and `expected` (or `label`): refused, complied, evades or unscored; `kind` (or `group`) and `goal` are optional. A
    row whose reply is null, of which only a hash is kept, is left out.

    Raises:
        DataError: the file cannot be read, a row is wrong, or no row has a reply.
    """
    labelled = [_labelled(row) for row in rows(path) if not _without_reply(row)]
    if not labelled:
        raise DataError(f"{path}: no labelled reply", got="no row with a reply", expected="rows of a labelled file")
    return labelled


def agreement(judge: Judge, labelled: Sequence[LabelledReply]) -> Agreement:
    """Judges every reply and compares the verdicts with the reader's.

    Raises:
        SeawallError: the judge cannot be used.
    """
    goals = [row.goal if row.goal is not None else row.prompt[-1].content for row in labelled]
    verdicts = judge([row.prompt for row in labelled], [row.response for row in labelled], goals)
    return Agreement(judge.name, tuple(Judged(*pair) for pair in zip(labelled, verdicts, strict=True)))


def _without_reply(row: Row) -> bool:
    return any(name in row.fields for name in _REPLY_FIELDS) and all(
        row.fields.get(name) is None for name in _REPLY_FIELDS
    )


def _labelled(row: Row) -> LabelledReply:
    expected = row.optional(_field(row, _LABEL_FIELDS))
    if expected not in get_args(Outcome):
        raise row.error("the label is unknown", got=repr(expected), expected=", ".join(get_args(Outcome)))
    name = _field(row, _REPLY_FIELDS)
    response = row.fields[name]
    if not isinstance(response, str):
        raise row.error(f"field {name!r} holds no text", got=repr(response)[:60], expected="text")
    goal = row.optional("goal") or None
    kinds = [kind for field in _KIND_FIELDS if (kind := row.optional(field))]
    return LabelledReply(_prompt(row), goal, response, _outcome(expected), kinds[0] if kinds else "all", row.where)


def _prompt(row: Row) -> Messages:
    value = row.fields.get("prompt")
    if isinstance(value, list) or "messages" in row.fields:
        messages = messages_of(replace(row, fields={"messages": value}) if isinstance(value, list) else row)
        check_order(row, messages, "user")  # a reply at the end would be taken for the request
        return messages
    return user("") if "prompt" in row.fields and value is None else user(row.text("prompt"))


def _field(row: Row, names: Sequence[str]) -> str:
    present = next((name for name in names if name in row.fields), None)
    if present is None:
        raise row.error(
            f"field {names[0]!r} is missing",
            got=f"the fields {', '.join(map(repr, row.fields)) or 'none'}",
            expected=f"one of {', '.join(map(repr, names))}",
        )
    return present


def _outcome(text: str) -> Outcome:
    return next(outcome for outcome in get_args(Outcome) if outcome == text)

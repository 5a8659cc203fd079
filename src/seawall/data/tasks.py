"""Tasks to fine-tune on: prompts with the completion that is wanted, from JSONL."""

from __future__ import annotations

from pathlib import Path

from seawall.data.chat import read_chat_jsonl, to_exchange
from seawall.data.files import Row, json_lines
from seawall.data.sources import worked_answer
from seawall.data.types import Exchange, user

_NAMES = (("prompt", "completion"), ("question", "answer"))


def load_task(path: str | Path) -> list[Exchange]:
    """The rows of a task. `goal` of each is its prompt's last message: what its split and its interval go by.

    Args:
        path: JSONL, all of one form: `prompt` and `completion` as texts; `messages` that end with the assistant;
            `question` and `answer`, also in GSM8K's format.

    Raises:
        DataError: `file:line: ...` for a row of no or another form; also for a file without rows.
    """
    found = list(json_lines(Path(path)))
    if not found:
        raise Row({}, str(path), 0).error("no rows to train on or to score", got="an empty file")
    if "messages" in found[0].fields:
        read = [to_exchange(row) for row in read_chat_jsonl(path, ending="assistant")]
        return [Exchange(one.prompt, one.response, one.prompt[-1].content) for one in read]
    names = next((names for names in _NAMES if set(names) <= found[0].fields.keys()), None)
    if names is None:
        raise found[0].error(
            "not a row of a task",
            got="the fields " + ", ".join(map(repr, found[0].fields)),
            expected="prompt and completion, messages, or question and answer",
        )
    return [_exchange(row, *names) for row in found]


def _exchange(row: Row, asked: str, answered: str) -> Exchange:
    prompt, answer = row.text(asked), row.text(answered)
    return Exchange(user(prompt), worked_answer(answer) if answered == "answer" else answer, prompt)

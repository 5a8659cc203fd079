"""Reads fine-tuning tasks from JSONL: prompts with the expected completion."""

from __future__ import annotations

from pathlib import Path

from seawall.data.chat import read_chat_jsonl, to_exchange
from seawall.data.columns import require_whole
from seawall.data.fields import worked_answer
from seawall.data.files import Row, json_lines
from seawall.data.types import Exchange, user

_NAMES = (("prompt", "completion"), ("question", "answer"))


def load_task(path: str | Path) -> list[Exchange]:
    """The rows of a task. The `goal` of each is its prompt's last message, by which splits and intervals cluster.

    Args:
        path: JSONL with one format in all rows: `prompt` and `completion` as texts; `messages` that end with the
            assistant; or `question` and `answer`, in GSM8K's format too.

    Raises:
        DataError: a row has no or another format (`file:line: ...`), or the file has no rows.
    """
    rows = list(json_lines(Path(path)))
    if not rows:
        raise Row({}, str(path), 0).error("the task has no rows", got="an empty file")
    if "messages" in rows[0].fields:
        exchanges = [to_exchange(row) for row in read_chat_jsonl(path, ending="assistant")]
        return [Exchange(exchange.prompt, exchange.response, exchange.prompt[-1].content) for exchange in exchanges]
    names = next((names for names in _NAMES if set(names) <= rows[0].fields.keys()), None)
    if names is None:
        raise rows[0].error(
            "the row has no known task format",
            got="the fields " + ", ".join(map(repr, rows[0].fields)),
            expected="prompt and completion, messages, or question and answer",
        )
    return [_exchange(row, *names) for row in rows]


def _exchange(row: Row, question_field: str, answer_field: str) -> Exchange:
    require_whole(row, used=(question_field, answer_field))
    prompt, answer = row.text(question_field), row.text(answer_field)
    return Exchange(user(prompt), worked_answer(answer) if answer_field == "answer" else answer, prompt)

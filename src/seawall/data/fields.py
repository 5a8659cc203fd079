"""Reads a prompt, its context and its answer from a row, in the formats of common datasets and of TRL."""

from __future__ import annotations

import re

from seawall.config.data import RowFields
from seawall.data.chat import check_order, messages_of
from seawall.data.columns import require_label, require_spelling, require_whole
from seawall.data.files import Row
from seawall.data.public import Purpose
from seawall.data.types import Messages, user

# Fields tried for the prompt where the recipe leaves `prompt_field` at its default.
_PROMPT_NAMES = ("prompt", "goal", "question", "instruction")
_ANSWER_NAMES = ("best", "output", "completion")


def plain_row(row: Row, names: RowFields, purpose: Purpose, *, stem: str) -> Row:
    """The row with the fields of every source. Rows without an id get the stem and their number.

    Raises:
        DataError: the row has no prompt, or no answer where the purpose needs one; a column that belongs to the prompt
            is not asked, or labels it as the opposite of what the purpose needs.
    """
    require_label(row, purpose)
    require_spelling(row, (names.split_field, "imperative"))
    prompt, answer = _gold(row, names) if purpose == "gold" else (_conversation(row, names)[0], "")
    fields: dict[str, object] = {
        "id": row.optional(names.id_field) or f"{stem}-{row.number}",
        "text": prompt[-1].content.strip(),
        "context": prompt[:-1],
        "answer": answer,
        "category": row.optional(names.category_field),
        "split": row.fields.get(names.split_field),
        "unsafe_twin": row.optional(names.unsafe_twin_field),
        "imperative": row.fields.get("imperative"),
    }
    return Row(fields, row.where, row.number)


def _conversation(row: Row, names: RowFields) -> tuple[Messages, str]:
    """The prompt, which ends with the user, and the reply in the row, if any.

    As in TRL, a list of messages as prompt is asked as it is; `messages` is a whole conversation, whose last message,
    if it is the assistant's, is the reply to the prompt before it.
    """
    column = names.prompt_field
    if column == "prompt":
        column = next((name for name in (*_PROMPT_NAMES, "messages") if row.fields.get(name) is not None), column)
    # `choices` of a gold question do not come here, and `input` belongs to an instruction.
    require_whole(row, used=(column, names.answer_field, *(["input"] if column == "instruction" else [])))
    if not isinstance(row.fields.get(column), list):
        extra = row.optional("input") if column == "instruction" else ""
        return user(f"{row.text(column)}\n\n{extra}" if extra else row.text(column)), ""
    messages, reply = messages_of(row, column), ""
    if column == "messages" and messages[-1].role == "assistant":
        check_order(row, messages, "assistant")
        messages, reply = messages[:-1], messages[-1].content
    check_order(row, messages, "user")
    return messages, reply


def _gold(row: Row, names: RowFields) -> tuple[Messages, str]:
    choices = row.fields.get("choices")
    if isinstance(choices, list):
        require_whole(row, used=("choices",))
        question, answer = _multiple_choice(row, [str(choice) for choice in choices])
        return user(question), answer
    prompt, reply = _conversation(row, names)
    column = next((name for name in (names.answer_field, *_ANSWER_NAMES) if name in row.fields), names.answer_field)
    if column not in row.fields and reply:
        return prompt, reply
    if isinstance(row.fields.get(column), list):
        return prompt, messages_of(row, column)[-1].content
    return prompt, worked_answer(row.text(column))


def worked_answer(answer: str) -> str:
    """GSM8K answers (`<<1+1=2>>` in the steps, `#### 2` at the end) as prose; other answers unchanged."""
    if "####" not in answer:
        return answer
    steps, _, result = re.sub(r"<<[^>]*>>", "", answer).rpartition("####")
    return f"{steps.strip()}\nThe answer is {result.strip()}."


def _multiple_choice(row: Row, choices: list[str]) -> tuple[str, str]:
    """MMLU: the question followed by its choices; the answer is letter and choice, so that the loss covers the text."""
    letters = [chr(ord("A") + index) for index in range(len(choices))]
    letter = row.text("answer").upper()
    if letter not in letters:
        raise row.error("the answer is not one of the choices", got=repr(letter), expected=", ".join(letters))
    listed = "\n".join(f"{name}. {choice}" for name, choice in zip(letters, choices, strict=True))
    return f"{row.text('question')}\n\n{listed}", f"{letter}. {choices[letters.index(letter)]}"

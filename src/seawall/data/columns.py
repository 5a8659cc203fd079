"""Columns of other tools' files that say something of a prompt, and must not be passed over without a word.

Some hold a part of what is asked (a system prompt, a passage, options), some say for whom the row is (`label: unsafe`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from seawall.data.files import Row, short_repr

if TYPE_CHECKING:
    from seawall.data.public import Purpose

_PARTS = (
    "system",
    "system_prompt",
    "system_message",
    "context",
    "contextstring",
    "context_string",
    "passage",
    "history",
    "input",
    "options",
    "choices",
    "endings",
)
"""Columns with a part of what is asked, in lower case: Dolly, SQuAD, OpenOrca, HarmBench, MMLU-Pro, ARC, HellaSwag."""
_SAFE = frozenset(("safe", "unharmful", "harmless", "benign", "not_harmful", "non_harmful", "nonharmful"))
_UNSAFE = frozenset(("unsafe", "harmful", "malicious", "toxic", "jailbreak", "not_safe"))
_OF_PROMPT = ("prompt_label", "prompt_harm_label", "prompt_safety", "prompt_safety_label")
_OF_ROW = ("label", "harm_label", "safety", "safety_label")
_YES_IF_SAFE = ("is_safe", "safe")
_YES_IF_UNSAFE = ("is_unsafe", "unsafe", "is_harmful", "harmful", "is_toxic", "toxic", "toxicity")
_REPLIES = frozenset(("response", "completion", "answer", "output"))
"""Beside one of these, a label without `prompt` in its name may be that of the reply."""
_TRUE, _FALSE = frozenset(("true", "1", "yes", "1.0")), frozenset(("false", "0", "no", "0.0"))


def truth(row: Row, name: str) -> bool | None:
    """A field as a truth value: `true`, 1, `"yes"` and their opposites; None where it is missing or empty.

    Raises:
        DataError: the field holds something else.
    """
    text = _word(row.fields.get(name))
    if text in ("", "none", "null", "nan"):
        return None
    if text not in _TRUE | _FALSE:
        raise row.error(f"field {name!r} is no truth value", got=short_repr(row.fields[name]), expected="true or false")
    return text in _TRUE


def require_whole(row: Row, *, used: Sequence[str]) -> None:
    """Refuses a row with a part of its prompt in a column that is not asked.

    Args:
        row: the row.
        used: the columns that make the prompt.

    Raises:
        DataError: such a column is not empty.
    """
    for name, content in row.fields.items():
        if name not in used and name.strip().casefold() in _PARTS and _is_filled(content):
            raise row.error(
                f"field {name!r} may be a part of the prompt, and it would not be asked",
                got=f"{name} = {short_repr(content)}",
                expected="the whole prompt in one field: text, or messages with the system message",
                remedy="write it into the prompt, or remove or rename the field if it is none of it",
            )


def require_spelling(row: Row, names: Sequence[str]) -> None:
    """Refuses a column whose name differs from a known one in case or white space alone; it would be passed over.

    Raises:
        DataError: a known column is missing, and such a column is there.
    """
    for column in names:
        similar = next((name for name in row.fields if name.strip().casefold() == column.casefold()), None)
        if column not in row.fields and similar is not None:
            raise row.error(
                f"field {similar!r} would be passed over",
                expected=f"{column!r}, letter by letter",
                remedy="rename the field; the recipe can name that of the split (split_field)",
            )


def require_label(row: Row, purpose: Purpose) -> None:
    """Refuses a row that its own file labels as the opposite of what the purpose needs.

    Raises:
        DataError: an unsafe prompt among harmless ones, or a safe one among harmful goals.
    """
    if purpose == "gold":
        return
    expected = purpose != "harmful"
    for name in row.fields:
        is_safe = _says_safe(row, name)
        if is_safe is not None and is_safe != expected:
            raise row.error(
                f"the row is labelled {'safe' if is_safe else 'unsafe'}, and data.{purpose} takes "
                f"{'safe' if expected else 'unsafe'} prompts",
                got=f"{name} = {short_repr(row.fields[name])}",
                remedy="leave such rows out of the file (`kind: xstest` chooses its own), or rename the field if it "
                "says something else",
            )


def _says_safe(row: Row, name: str) -> bool | None:
    """Whether a column labels the prompt as safe; None where it says nothing of that."""
    column, word = name.strip().casefold(), _word(row.fields[name])
    if column == "type" and word.startswith("contrast_"):  # XSTest
        return False
    if column not in _OF_PROMPT and not _REPLIES.isdisjoint(map(str.casefold, row.fields)):
        return None
    if column in (*_OF_PROMPT, *_OF_ROW):
        return True if word in _SAFE else False if word in _UNSAFE else None
    if column in (*_YES_IF_SAFE, *_YES_IF_UNSAFE) and word in _TRUE | _FALSE:
        return (word in _TRUE) == (column in _YES_IF_SAFE)
    return None


def _word(value: object) -> str:
    return "" if value is None else str(value).strip().casefold().replace(" ", "_").replace("-", "_")


def _is_filled(value: object) -> bool:
    """Whether a field holds anything; NaN is how pandas writes an empty one."""
    return value not in (None, "", [], {}, ()) and str(value).strip().casefold() not in ("", "nan", "none", "null")

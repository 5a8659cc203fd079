"""The classification task shipped with seawall: the topic of a customer's message. Our own texts, in five classes."""

from __future__ import annotations

from dataclasses import dataclass

from seawall.data.files import Row, json_lines
from seawall.data.sources import builtin_path
from seawall.data.types import Exchange, user

CLASSES = ("account", "delivery", "payment", "product", "return")
_PROMPT = "What is this customer's message about: {classes}? Answer with one word.\n\nMessage: {text}"


@dataclass(frozen=True, slots=True)
class CustomerMessages:
    """Training and test rows: a message with the question for its class, and the class's name as the answer."""

    train: tuple[Exchange, ...]
    test: tuple[Exchange, ...]


def customer_messages() -> CustomerMessages:
    """The 260 training and 140 test messages, with balanced classes; `goal` is the message.

    A naive Bayes classifier of words, fitted to the training messages, gets 54 % of the test messages right; chance is
    20 %.
    """
    rows = list(json_lines(builtin_path("messages.jsonl")))
    train, test = ([_exchange(row) for row in rows if row.text("split") == part] for part in ("train", "test"))
    return CustomerMessages(tuple(train), tuple(test))


def _exchange(row: Row) -> Exchange:
    text, listed = row.text("text"), f"{', '.join(CLASSES[:-1])} or {CLASSES[-1]}"
    return Exchange(user(_PROMPT.format(classes=listed, text=text)), row.text("label"), text)

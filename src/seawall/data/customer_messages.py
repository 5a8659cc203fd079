"""The task that is shipped with seawall: what is a customer's message about? Our own texts, in five classes."""

from __future__ import annotations

from dataclasses import dataclass

from seawall.data.files import Row, json_lines
from seawall.data.sources import builtin_path
from seawall.data.types import Exchange, user

CLASSES = ("account", "delivery", "payment", "product", "return")
_PROMPT = "What is this customer's message about: {classes}? Answer with one word.\n\nMessage: {text}"


@dataclass(frozen=True, slots=True)
class CustomerMessages:
    """Rows to train on and to score: a message and the question for its class, answered by the class's name."""

    train: tuple[Exchange, ...]
    test: tuple[Exchange, ...]


def customer_messages() -> CustomerMessages:
    """The 260 training and the 140 test messages, each class as often as the others; `goal` is the message.

    A naive Bayes classifier of words that is fitted to the training messages gets 54 % of the test messages right,
    guessing 20 %.
    """
    found = list(json_lines(builtin_path("messages.jsonl")))
    train, test = ([_exchange(row) for row in found if row.text("split") == part] for part in ("train", "test"))
    return CustomerMessages(tuple(train), tuple(test))


def _exchange(row: Row) -> Exchange:
    text, listed = row.text("text"), f"{', '.join(CLASSES[:-1])} or {CLASSES[-1]}"
    return Exchange(user(_PROMPT.format(classes=listed, text=text)), row.text("label"), text)

"""Splits prompts into training, validation and test parts, by goal, so that no goal is in two parts."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

SplitName = Literal["train", "validation", "test"]

NAMES: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
"""Part by the name that a source may use."""

SHARES: dict[SplitName, float] = {"train": 0.6, "validation": 0.15, "test": 0.25}
"""Expected shares of the parts of a source that names none."""


class HasText(Protocol):
    """An item with a text to hash."""

    @property
    def text(self) -> str:
        """The goal or prompt."""
        ...


class Splittable(HasText, Protocol):
    """An item that `split` can assign to a part."""

    @property
    def split(self) -> SplitName | None:
        """The part that the source names, if any."""
        ...


Item = TypeVar("Item", bound=Splittable)
Texted = TypeVar("Texted", bound=HasText)


@dataclass(frozen=True, slots=True)
class Split(Generic[Item]):
    """The three parts of a source, each in the source's order."""

    train: tuple[Item, ...]
    validation: tuple[Item, ...]
    test: tuple[Item, ...]

    @property
    def all(self) -> tuple[Item, ...]:
        """Every item."""
        return self.train + self.validation + self.test

    def part(self, name: SplitName) -> tuple[Item, ...]:
        """One part by its name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


def key(text: str) -> str:
    """The identity of a prompt: its text without case, extra white space, final punctuation and ways of encoding it."""
    return " ".join(plain_characters(text).split()).rstrip(".!? ")


def plain_characters(text: str) -> str:
    """A text in lower case, with one encoding of every character and without invisible ones.

    An accent may be a character of its own (NFD, as file systems of macOS write it), letters may have full width, and
    zero-width characters may stand between them: a reader sees the same text.
    """
    if text.isascii():
        return text.casefold()
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return "".join(character for character in folded if unicodedata.category(character) != "Cf")


def hash_fraction(text: str, salt: str) -> float:
    """A hash of text and salt as a number in [0, 1): stable across runs, machines and the order of the source."""
    digest = hashlib.sha256(f"{salt}\n{key(text)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split(items: Sequence[Item]) -> Split[Item]:
    """Splits items by the parts that their source names, and otherwise by a hash of the text.

    - A source that names no part, or only `train`, is split 60 : 15 : 25.
    - Without a test part, half of the validation part becomes test; training goals never do.
    - Without a validation part, a fifth of the training part becomes validation; test goals never do.
    - A source with a test part alone stays all test.
    """
    named = {item.split for item in items if item.split is not None}
    place: Callable[[Item], SplitName]
    place = _by_hash if named <= {"train"} else (lambda item: _as_named(item, named))
    parts: dict[SplitName, list[Item]] = {"train": [], "validation": [], "test": []}
    for item in items:
        parts[place(item)].append(item)
    return Split(tuple(parts["train"]), tuple(parts["validation"]), tuple(parts["test"]))


def take(items: Sequence[Texted], at_most: int | None) -> tuple[Texted, ...]:
    """At most `at_most` items in order, chosen by hash, because the first items of a sorted file are no fair sample."""
    if at_most is None or at_most >= len(items):
        return tuple(items)
    chosen = set(sorted(range(len(items)), key=lambda index: hash_fraction(items[index].text, "take"))[:at_most])
    return tuple(item for index, item in enumerate(items) if index in chosen)


def _by_hash(item: Splittable) -> SplitName:
    number = hash_fraction(item.text, "split")
    if number < SHARES["train"]:
        return "train"
    return "validation" if number < SHARES["train"] + SHARES["validation"] else "test"


def _as_named(item: Splittable, named: set[SplitName]) -> SplitName:
    if item.split is None:
        return _by_hash(item)
    if item.split == "validation" and "test" not in named:
        return "test" if hash_fraction(item.text, "test") < 0.5 else "validation"
    if item.split == "train" and "validation" not in named:
        return "validation" if hash_fraction(item.text, "validation") < 0.2 else "train"
    return item.split

"""Near-duplicates between the parts of a source: a part is held out only if no other part has nearly the same prompt.

Two texts are near-duplicates if their sets of words share at least half of their union (Jaccard similarity). An
inverted index of each text's rarest words finds them without comparing every pair (prefix filtering: Chaudhuri et al.
2006).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Generic, TypeVar

from seawall.data.splits import Split, Splittable, plain_characters

_WORD = re.compile(r"\w+")
_UNSPACED = re.compile("[\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
"""Thai, Lao, Tibetan, Burmese, Khmer, kana and Han characters."""
_MOST = 0.5
"""Largest share of a part that is left out. A source of one sentence with changing words keeps its parts."""

Item = TypeVar("Item", bound=Splittable)
Words = frozenset[str]


@dataclass(frozen=True, slots=True)
class Separated(Generic[Item]):
    """Splits without near-duplicates between their parts, and a line on what was left out; empty for nothing."""

    splits: tuple[Split[Item], ...]
    note: str = ""


def words(text: str) -> Words:
    """The set of words of a text, without case, punctuation and ways of encoding it.

    Scripts without spaces between words (Chinese, Japanese, Thai and others) have pairs of neighbouring characters in
    place of words: a whole sentence would be a single word, and no other sentence near it.
    """
    plain = plain_characters(text)
    if plain.isascii():
        return frozenset(_WORD.findall(plain))
    spaced = "".join(character if _in_word(character) else " " for character in plain)
    return frozenset(part for word in spaced.split() for part in _parts(word))


def _in_word(character: str) -> bool:
    """Whether a character belongs to a word; vowel signs and accents do, as in Hindi."""
    return character.isalnum() or character == "_" or unicodedata.category(character).startswith("M")


def _parts(word: str) -> Iterator[str]:
    """The word; of its stretches without spaces, all pairs of neighbouring characters."""
    for is_unspaced, characters in groupby(word, key=lambda character: _UNSPACED.match(character) is not None):
        stretch = "".join(characters)
        if is_unspaced and len(stretch) > 1:
            yield from (stretch[index : index + 2] for index in range(len(stretch) - 1))
        else:
            yield stretch


def with_near_duplicate(texts: Sequence[Words], references: Sequence[Words]) -> list[bool]:
    """Whether each text has a near-duplicate among the references; an empty text has none."""
    counts = Counter(word for row in (*texts, *references) for word in row)
    index: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(references):
        for word in _prefix(row, counts):
            index[word].append(number)
    near = []
    for row in texts:
        candidates = {number for word in _prefix(row, counts) for number in index[word]}
        near.append(any(_are_near(row, references[number]) for number in candidates))
    return near


def _prefix(row: Words, counts: Counter[str]) -> list[str]:
    """The rarest words: of two sets that share half of their union, these parts share a word."""
    ordered = sorted(row, key=lambda word: (counts[word], word))
    return ordered[: len(ordered) // 2 + 1]


def _are_near(first: Words, second: Words) -> bool:
    return 3 * len(first & second) >= len(first) + len(second) > 0  # 2 |A & B| >= |A or B|


def separate(splits: Sequence[Split[Item]], what: str) -> Separated[Item]:
    """Leaves near-duplicates out of the part that is less held out, over all splits together.

    Left out is a validation prompt near a test prompt, and a training prompt near a test or validation prompt. A part
    that would lose more than half of its prompts keeps them.

    Args:
        splits: sources whose parts are used together.
        what: the kind of prompts, for the line.
    """
    test = [words(item.text) for split in splits for item in split.test]
    validation, lost_validation, near_validation = _kept([split.validation for split in splits], test)
    held_out = [*test, *(words(item.text) for part in validation for item in part)]
    train, lost_train, near_train = _kept([split.train for split in splits], held_out)
    result = tuple(
        Split(train_part, validation_part, split.test)
        for train_part, validation_part, split in zip(train, validation, splits, strict=True)
    )
    return Separated(result, _note(what, (lost_train, lost_validation), (near_train, near_validation)))


def _kept(parts: Sequence[Sequence[Item]], references: Sequence[Words]) -> tuple[list[tuple[Item, ...]], int, int]:
    """The parts without near-duplicates of the references, and the numbers of prompts left out, and not left out."""
    items = [item for part in parts for item in part]
    near = with_near_duplicate([words(item.text) for item in items], references)
    count = sum(near)
    if count > _MOST * len(items):
        return [tuple(part) for part in parts], 0, count
    flags = iter(near)
    return [tuple(item for item in part if not next(flags)) for part in parts], count, 0


def _note(what: str, lost: tuple[int, int], near: tuple[int, int]) -> str:
    lines = []
    if any(lost):
        lines.append(
            f"{what}: {lost[0]} training and {lost[1]} validation prompts are left out, since they share half of their "
            "words or more with a prompt that is held out from them"
        )
    if any(near):
        lines.append(
            f"{what}: {near[0]} training and {near[1]} validation prompts share half of their words or more with a "
            "prompt that is held out from them, more than half of their part, so they stay: this part is held out by "
            "text alone"
        )
    return "; ".join(lines)

"""Tokenises untrusted text apart from the frame of a guard's prompt, so that no reply holds a control token of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

CANNOT_SPLIT = "holds control tokens of the guard, and the guard's template alters the text"


def frame_ids(
    tokenizer: PreTrainedTokenizerBase, text: str, contents: Sequence[str], *, add_special_tokens: bool
) -> tuple[int, ...] | None:
    """The token ids of a prompt, in which the untrusted contents have no control tokens.

    Args:
        tokenizer: of the guard.
        text: the whole prompt: frame and contents.
        contents: untrusted texts of the prompt, in order.
        add_special_tokens: whether the tokenizer adds its own; it adds none to a frame that begins with its first one,
            as prompts that authors publish do, since the guard would read two.

    Returns:
        The ids; None where a content holds a control token and does not stand in the prompt as it is.
    """
    bos = tokenizer.bos_token
    if bos is not None and text.startswith(str(bos)) and not text.startswith(contents[0]):
        add_special_tokens = False
    if not any(token in content for content in contents for token in tokenizer.get_added_vocab()):
        return tuple(tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])
    spans = _spans(text, contents)
    if spans is None:
        return None
    # Where special tokens belong is known from the tokens of a text without contents.
    around = tokenizer("x", add_special_tokens=add_special_tokens)["input_ids"]
    inner = tokenizer("x", add_special_tokens=False)["input_ids"]
    start = next(at for at in range(len(around)) if list(around[at : at + len(inner)]) == list(inner))
    ids, position = list(around[:start]), 0
    for first, last in spans:
        ids += tokenizer(text[position:first], add_special_tokens=False)["input_ids"]
        ids += plain_ids(tokenizer, text[first:last])
        position = last
    ids += tokenizer(text[position:], add_special_tokens=False)["input_ids"]
    return (*ids, *around[start + len(inner) :])


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a text in which control tokens are letters like others: each is cut after its first letter."""
    cuts = {0, len(text)}
    for token in tokenizer.get_added_vocab():
        cuts |= {match.start() + 1 for match in re.finditer(re.escape(token), text) if len(token) > 1}
    ids: list[int] = []
    for first, last in pairwise(sorted(cuts)):
        ids += tokenizer(text[first:last], add_special_tokens=False)["input_ids"]
    return ids


def _spans(text: str, contents: Sequence[str]) -> list[tuple[int, int]] | None:
    """Where the contents stand in the text, as they are or without spaces around them."""
    spans, position = [], 0
    for content in contents:
        part = content if text.find(content, position) >= 0 else content.strip()
        first = text.find(part, position)
        if first < 0:
            return None
        position = first + len(part)
        spans.append((first, position))
    return spans

"""Visible untrusted text: every character that would act, hide or reorder is replaced by a visible one.

Model output, names and paths may hold terminal escapes, bidirectional overrides (CVE-2021-42574, "Trojan Source"),
invisible tag characters and lone surrogates. This module stops such text from misleading a reader, on a terminal and on
a page, and makes sure that UTF-8 can encode it.
"""

from __future__ import annotations

import unicodedata

_BREAKS = frozenset("\n\t")
_JOINERS = frozenset("\u200c\u200d")
"""Several scripts and emoji need the two joiners for correct spelling."""


def visible(text: str) -> str:
    """The text with control characters as their pictures (U+2400 block) and other hidden characters as `⟨U+202E⟩`.

    Line breaks and tabs stay. Plain text out: safe to escape into an attribute, a `<title>` or Markdown.
    """
    if is_harmless(text):
        return text
    return "".join(picture(char) if is_hidden(char) else char for char in text)


def visible_line(text: str) -> str:
    """`visible` in one line: line breaks and tabs are pictures too. For everything that a terminal shows."""
    if text.isprintable():
        return text
    return "".join(picture(char) if char in _BREAKS or is_hidden(char) else char for char in text)


def is_harmless(text: str) -> bool:
    """Whether every character is printable, a line break or a tab: a fast test for most texts."""
    return text.replace("\n", "").replace("\t", "").isprintable()


def is_hidden(char: str) -> bool:
    """Not printable: categories Cc, Cf, Cs, Co, Cn, Zl, Zp; the visible blanks of Zs stay."""
    is_allowed = char in _BREAKS or char in _JOINERS
    return not char.isprintable() and not is_allowed and unicodedata.category(char) != "Zs"


def picture(char: str) -> str:
    """The visible form of a character."""
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"⟨U+{code:04X}⟩"

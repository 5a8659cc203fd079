"""Visible untrusted text: every character that would act, hide or reorder is replaced by a visible one.

Model output may hold terminal escapes, bidirectional overrides (CVE-2021-42574, "Trojan Source"), invisible tag
characters and lone surrogates. Escaping HTML stops such text from acting as markup; this module stops it from
misleading the reader, and makes sure that UTF-8 can encode the page.
"""

from __future__ import annotations

import unicodedata

from markupsafe import Markup, escape

_ALLOWED = frozenset("\n\t\u200c\u200d")
"""Line breaks and tabs; the two joiners, which several scripts and emoji need for correct spelling."""
_LIMIT = 4000


def visible(text: str) -> str:
    """The text with control characters as their pictures (U+2400 block) and other hidden characters as `⟨U+202E⟩`.

    Plain text out: safe to escape into an attribute, a `<title>` or Markdown.
    """
    if _harmless(text):
        return text
    return "".join(_picture(char) if _hidden(char) else char for char in text)


def visible_markup(text: str, limit: int = _LIMIT) -> Markup:
    """The text as `visible` gives it, escaped for HTML; replaced characters in a `<span class="cp">` with their name.

    Args:
        text: of a model.
        limit: number of characters; the number of characters beyond it is added in words.
    """
    start, excess = text[:limit], len(text) - limit
    body = escape(start) if _harmless(start) else Markup("").join(map(_marked, start))
    if excess > 0:
        body += Markup('<span class="cut"> … {} more characters</span>').format(excess)
    return body


def _harmless(text: str) -> bool:
    return text.replace("\n", "").replace("\t", "").isprintable()


def _hidden(char: str) -> bool:
    """Not printable: categories Cc, Cf, Cs, Co, Cn, Zl, Zp; the visible blanks of Zs stay."""
    return not char.isprintable() and char not in _ALLOWED and unicodedata.category(char) != "Zs"


def _picture(char: str) -> str:
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"⟨U+{code:04X}⟩"


def _marked(char: str) -> Markup:
    if not _hidden(char):
        return escape(char)
    name = unicodedata.name(char, f"U+{ord(char):04X}")
    return Markup('<span class="cp" title="{}">{}</span>').format(name, _picture(char))

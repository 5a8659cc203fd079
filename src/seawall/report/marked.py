"""Untrusted text for pages: escaped for HTML, with every hidden character marked."""

from __future__ import annotations

import unicodedata

from markupsafe import Markup, escape

from seawall.visible import is_harmless, is_hidden, picture

_LIMIT = 4000


def visible_markup(text: str, limit: int = _LIMIT) -> Markup:
    """The text as `visible` gives it, escaped for HTML; replaced characters in a `<span class="cp">` with their name.

    Args:
        text: of a model.
        limit: number of characters; the number of characters beyond it is added in words.
    """
    start, excess = text[:limit], len(text) - limit
    body = escape(start) if is_harmless(start) else Markup("").join(map(_marked, start))
    if excess > 0:
        body += Markup('<span class="cut"> … {} more characters</span>').format(excess)
    return body


def _marked(char: str) -> Markup:
    if not is_hidden(char):
        return escape(char)
    name = unicodedata.name(char, f"U+{ord(char):04X}")
    return Markup('<span class="cp" title="{}">{}</span>').format(name, picture(char))

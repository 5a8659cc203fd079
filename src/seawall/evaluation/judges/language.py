"""Tells which language a reply is in, so that rules for English are not applied to others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from seawall.evaluation.judges.degenerate import FUNCTION_WORDS, words

_MIN_WORDS = 4
"""Shorter texts say too little of their language."""
_NOT_OTHER = ("en", "zxx")
"""English, and the code of texts in no language."""
_MIN_PROBABILITY = 0.8
_MIN_ENGLISH_SHARE = 0.2
"""A text with this share of English function words is English, whatever the identifier says."""


def other_language(text: str) -> str | None:
    """The ISO 639-1 code of the text's language where it is surely not English, else None."""
    reply = words(text)
    if len(reply) < _MIN_WORDS or _english_share(reply) >= _MIN_ENGLISH_SHARE:
        return None
    code, probability = _identifier().classify(text)
    return str(code) if code not in _NOT_OTHER and probability >= _MIN_PROBABILITY else None


def _english_share(reply: Sequence[str]) -> float:
    return sum(word in FUNCTION_WORDS for word in reply) / len(reply)


@cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

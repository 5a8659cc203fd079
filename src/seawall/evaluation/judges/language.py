"""Tells which language a reply is in, so that rules for English are not applied to others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from operator import itemgetter

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from seawall.evaluation.judges.degenerate import FUNCTION_WORDS, words

_FEW_WORDS = 4
"""Fewer words say too little of their language, unless one language stands out."""
_NOT_OTHER = ("en", "zxx")
"""English, and the code of texts in no language."""
_MAX_ENGLISH = 0.003
"""Largest probability of English at which a text is in another language, whichever: of Czech and Slovak, or Danish and
Norwegian, neither may be likely alone."""
_MIN_ALONE = 0.75
"""Least probability of the language of a few words."""
_MIN_ENGLISH_SHARE = 0.2
"""A longer text with this share of English function words is English, whatever the identifier says."""


def other_language(text: str) -> str | None:
    """The ISO 639-1 code of the text's likeliest language where it is surely not English, else None."""
    reply = words(text)
    is_short = len(reply) < _FEW_WORDS
    if _is_name(text) if is_short else _english_share(reply) >= _MIN_ENGLISH_SHARE:
        return None
    probabilities = {str(code): float(probability) for code, probability in _identifier().rank(text)}
    code, probability = max(probabilities.items(), key=itemgetter(1))
    if code in _NOT_OTHER or probabilities["en"] > _MAX_ENGLISH:
        return None
    return code if not is_short or probability >= _MIN_ALONE else None


def _is_name(text: str) -> bool:
    """Whether every word begins with a capital or a sign, as in the names of persons and places."""
    return not any(word[:1].islower() for word in text.split())


def _english_share(reply: Sequence[str]) -> float:
    return sum(word in FUNCTION_WORDS for word in reply) / len(reply)


@cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
